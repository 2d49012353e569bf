"""Everything that is checked and measured on a GPU: `make gpu`."""
