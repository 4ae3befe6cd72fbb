"""Measurement of time, memory, energy and ceilings, and the description of the machine. Imports no models."""
