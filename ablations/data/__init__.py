"""The data that studies are made of: simulated epidemics, images, and what is done to images in training."""
