"""The mathematics: the network, its gradients, their check, and the file it is saved in."""
