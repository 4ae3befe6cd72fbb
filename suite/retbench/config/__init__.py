"""Experiment files and everything that they may say."""
