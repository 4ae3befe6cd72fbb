"""Training runs, which `retbench train` records."""

from retbench.workloads.workload import MetricSpec, Workload

WORKLOAD = Workload(
    name="training_run",
    title="Training runs",
    metrics=(
        MetricSpec("validation_loss_nats", "validation loss, nats/token", True, better="better"),
        MetricSpec(
            "validation_acc", "validation accuracy", False, optional=True, better="better", unit="ratio"
        ),
        MetricSpec("learnt_step", "learnt at step", True, optional=True, unit="count"),
    ),
    quantity="validation loss",
    replicate="seed",
    spec=None,
    modules=("retbench.training.engine",),
    order=9,
    one_round=True,
)
