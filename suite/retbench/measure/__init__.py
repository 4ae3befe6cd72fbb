"""How things are measured: time, memory, ceilings, the machine, statistics over rounds. Sees no models."""
