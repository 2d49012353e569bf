"""`python -m recurve` prints what runs where and why."""

from recurve import status

print(status())
