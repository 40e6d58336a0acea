"""``python -m nnlib`` is the command ``nnlib``."""

from nnlib.cli import main

if __name__ == "__main__":
    main()
