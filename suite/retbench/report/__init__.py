"""From records to tables, figures and a report: reads what runs left on disk, and needs no torch.

Data walks one way: records -> selection (what may stand together) -> frames (typed rows) -> points (values
with intervals) -> tables, figures, findings -> report.
"""
