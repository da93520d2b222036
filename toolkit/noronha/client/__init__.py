"""What takes a client more than one call: finding the mesh, uploading, publishing, building, following, waiting."""
