"""`python -m train` prints all stages."""

import train
from train.stages import stage_list


if __name__ == "__main__":
    print(f"{train.__doc__}\n{stage_list()}")
