"""What every server of the mesh is mounted on. It knows no service."""
