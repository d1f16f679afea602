"""`python -m train` prints the recipe."""

import train


print(train.__doc__)
