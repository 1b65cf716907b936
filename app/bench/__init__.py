"""The `bench` command: speed on this machine, measured so that it can be repeated and doubted."""
