"""FedBuff; the same on the simulator and on a deployment."""

from fedbuff_task import data, model
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fl.models import evaluate
from fl.strategies import Events, FedBuff

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, and prints what came of it."""
    config = context.run_config
    digits = data()
    net = model(digits, seed=int(config["fl.seed"]))

    def evaluated(version: int, arrays: ArrayRecord) -> MetricRecord:
        net.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = evaluate(net, digits.test_set())
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = Events(
        FedBuff(buffer_size=int(config["buffer-size"])),
        concurrency=int(config["concurrency"]),
        min_available_nodes=int(config["concurrency"]),
        retry_s=1.0,
        seed=int(config["fl.seed"]),
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=int(config["versions"]),
        train_config=ConfigRecord(
            {"lr": float(config["lr"]), "local-epochs": int(config["local-epochs"])}
        ),
        evaluate_fn=evaluated,
    )
    last = max(result.evaluate_metrics_serverapp)
    print(f"version {last}: accuracy {result.evaluate_metrics_serverapp[last]['accuracy']:.4f}")
