"""The architectures: one readable file each, assembled from public tkpy; imported as `tkpy.models`."""
