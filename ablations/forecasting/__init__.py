"""Forecasts of epidemics: what they are compared with, how they are scored, and the task that trains them."""
