"""maquette: pictures in, 3D assets out. Importing this package does not import torch."""

__version__ = "0.1.0"
