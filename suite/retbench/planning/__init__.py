"""From an experiment to the cells of a run: models under test, evaluation inputs, estimates."""
