"""Images and labels: CIFAR-10, the stand-in, your own arrays, and what is done to pixels."""
