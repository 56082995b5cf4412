"""Parameter quantization: fewer different values, fewer bits."""

from penjing.quantization.cluster import Cluster, cluster_, cluster_network, cluster_together_, kmeans_1d
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {stage.label: stage for stage in (Cluster,)}

__all__ = ["STAGES", "Cluster", "cluster_", "cluster_network", "cluster_together_", "kmeans_1d"]
