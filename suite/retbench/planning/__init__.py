"""Planning: an experiment becomes the cells of a run, with models under test and evaluation inputs."""
