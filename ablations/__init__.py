"""Ablation studies of convolutional and recurrent networks: design, training, records and reports."""
