"""`python -m train` prints the recipe."""

import train
from train.recipe import recipe


if __name__ == "__main__":
    print(f"{train.__doc__}\n{recipe()}")
