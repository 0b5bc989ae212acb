"""Configuration: frozen keyword-only dataclasses, checked on construction."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from distgnn.types import UserError

_MOST_BATCH, _LEAST_STEPS = 2048, 32  # of a batch_size = 0


def _one_of(section: str, key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"config: {section}.{key} = {value!r} is not one of {', '.join(allowed)}")


def _at_least(section: str, key: str, value: float, low: float) -> None:
    if not value >= low:
        raise UserError(f"config: {section}.{key} = {value} must be at least {low}")


def _number_or_share(value: float, n: int) -> int:
    """A share below 1 as a number of n, a number as it is, at most n."""
    return int(value * n) if value < 1 else min(int(value), n)


def _between(section: str, key: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise UserError(f"config: {section}.{key} = {value} must lie in [{low}, {high})")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where results go, and what makes a run repeatable."""

    out: str = ""  # run directory to create (prepare: the dataset's, recommend: a file); empty: runs/<dataset>-<time>
    path: str = ""  # an existing run: evaluate, recommend
    seed: int = 0  # of the split, the start, the order, the draws and the dropout
    dtype: str = "float32"  # of rows, parameters and moments
    dump_blocks: bool = False  # write every step's seeds, negatives and drawn edges to OUT/blocks
    resume: bool = False  # go on from the last checkpoint in `out`
    tensorboard: bool = True  # event files in OUT/tensorboard
    trace: str = ""  # train: file for a timeline of every worker, to open in Perfetto or chrome://tracing; empty: none

    def __post_init__(self) -> None:
        _one_of("run", "dtype", self.dtype, ("float32", "float64"))
        _between("run", "seed", self.seed, 0, 2**63)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The interaction log and its split. `path` (prepared) goes before `input` (raw log), that before `name`."""

    name: str = ""  # registry name; with `input`: the name to give the dataset
    input: str = ""  # raw log, local or any fsspec URI
    valid_input: str = ""  # validation log, with split = "given"; without one 10% of each user's train edges
    test_input: str = ""  # test log, with split = "given"
    path: str = ""  # prepared dataset
    format: str = "auto"  # of the logs; auto: by the file's name; lightgcn: `user item item ...` a line
    user_column: str = "user"  # its name in the logs
    item_column: str = "item"  # its name in the logs
    timestamp_column: str = ""  # its name in the logs; empty: no timestamps
    weight_column: str = ""  # its name in the logs; empty: no weights; what sampler.weighted goes by
    user_features: str = ""  # Parquet: the column `user_column`, beside it columns of numbers or of lists of numbers
    item_features: str = ""  # likewise, with the column `item_column`
    standardize_features: bool = True  # to mean 0 and deviation 1 of each column, over the nodes that have a row
    split: str = "auto"  # auto: given for registry datasets and where test_input is set, else per_user_ratio
    holdout: int = 1  # leave_last_k: edges a user for test, and as many for validation
    valid_ratio: float = 0.1  # share of the edges, for per_user_ratio and global_time
    test_ratio: float = 0.1  # likewise

    def __post_init__(self) -> None:
        _one_of("data", "format", self.format, ("auto", "csv", "parquet", "lightgcn"))
        _one_of("data", "split", self.split, ("auto", "given", "leave_last_k", "per_user_ratio", "global_time"))
        _at_least("data", "holdout", self.holdout, 1)
        _between("data", "valid_ratio", self.valid_ratio, 0.0, 1.0)
        _between("data", "test_ratio", self.test_ratio, 0.0, 1.0)
        if self.valid_ratio + self.test_ratio >= 1.0:
            raise UserError("config: data.valid_ratio + data.test_ratio must leave something to train on (below 1)")


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the graph is cut."""

    parts: int = 0  # 0: as many as cluster.workers, at the most
    method: str = "metis"  # metis: few edges between partitions; random: by stable id
    balance: str = (
        "both"  # METIS weights: nodes, edges, both (mean); inclusion, work: what a sampled step takes of them
    )
    memory_gib: float = 0.0  # METIS falls back to `random` above it; 0: what the machine has free

    def __post_init__(self) -> None:
        _at_least("partition", "parts", self.parts, 0)
        _one_of("partition", "method", self.method, ("metis", "random"))
        _one_of("partition", "balance", self.balance, ("nodes", "edges", "both", "inclusion", "work"))
        _at_least("partition", "memory_gib", self.memory_gib, 0.0)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Neighbour sampling. One hop, and so one encoder layer, for each entry of `fanout`."""

    fanout: tuple[int, ...] = (10, 10)  # most neighbours drawn for a node, the hop next to the seeds first
    topology: str = "auto"  # replicated: all of it mapped at each worker; partitioned: own partitions; auto: what fits
    threads: int = 1  # that sample, for each worker
    prefetch: int = 4  # minibatches ahead of the trainer
    expand: str = "all"  # all: every node of the frontier draws afresh each hop; new: only new nodes do, as in PyG
    exclude_targets: bool = True  # keep the seed edges of the global step out of its blocks, in both directions
    time_respecting: bool | str = "auto"  # no edge later than the target; auto: true where data.split = global_time
    weighted: bool = False  # draw a neighbour with probability by its edge's weight (data.weight_column), not uniformly

    def __post_init__(self) -> None:
        if not self.fanout or any(f < 1 for f in self.fanout):
            raise UserError(f"config: sampler.fanout = {list(self.fanout)} must name at least one hop, each at least 1")
        _one_of("sampler", "topology", self.topology, ("auto", "replicated", "partitioned"))
        if not isinstance(self.time_respecting, bool) and self.time_respecting != "auto":
            raise UserError(
                f"config: sampler.time_respecting = {self.time_respecting!r} is not one of auto, true, false"
            )
        _at_least("sampler", "threads", self.threads, 1)
        _at_least("sampler", "prefetch", self.prefetch, 1)
        _one_of("sampler", "expand", self.expand, ("all", "new"))

    @property
    def respects_time(self) -> bool:
        """Whether sampling goes by timestamps; of `auto` not yet (see `Config.for_log`)."""
        return self.time_respecting is True


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and tower. `encoder` is lightgcn, gcn, graphsage, or the dotted name of a bipartite PyG layer."""

    encoder: str = "lightgcn"
    dim: int = 64  # width of the embeddings
    tower: str = "identity"  # after the encoder, one for users and one for items
    tower_hidden: tuple[int, ...] = (128,)  # widths of the mlp tower's hidden layers
    tower_out: int = 0  # 0: as wide as `dim`
    dropout: float = 0.0  # in gcn, graphsage, PyG layers and mlp towers
    init_std: float = 0.1  # of the embeddings' normal start
    matmul: str = "float32"  # or bfloat16: products of gcn, graphsage and mlp towers; faster where the processor has it
    features: bool = True  # add a linear map of a node's features to its embedding, where the dataset has features

    def __post_init__(self) -> None:
        if "." not in self.encoder:
            _one_of("model", "encoder", self.encoder, ("lightgcn", "gcn", "graphsage"))
        _one_of("model", "tower", self.tower, ("identity", "mlp"))
        _at_least("model", "dim", self.dim, 1)
        _at_least("model", "tower_out", self.tower_out, 0)
        _between("model", "dropout", self.dropout, 0.0, 1.0)
        _one_of("model", "matmul", self.matmul, ("float32", "bfloat16"))
        if self.matmul == "bfloat16" and self.encoder not in ("gcn", "graphsage") and self.tower == "identity":
            raise UserError(
                f"config: model.matmul = 'bfloat16' has nothing to act on: model.encoder = {self.encoder} and "
                f"model.tower = identity have no linear maps of ours; leave it out"
            )
        _at_least("model", "init_std", self.init_std, 0.0)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Training objective. Ranking always goes by the inner product."""

    name: str = "sampled_softmax"
    negatives: str = "auto"  # in_batch (sampled_softmax), uniform (each edge its own), shared (a step's); not directau
    num_negatives: int = 1  # for uniform and shared
    score: str = "auto"  # cosine for sampled_softmax and directau, dot for bpr
    temperature: float = 0.1  # divides the scores of sampled_softmax, and of bpr on cosines; positive
    logq: bool = False  # in-batch: subtract the log of the item's chance to be a column
    uniformity: float = 1.0  # directau: weight of uniformity beside alignment

    def __post_init__(self) -> None:
        _one_of("loss", "name", self.name, ("bpr", "sampled_softmax", "directau"))
        _one_of("loss", "negatives", self.negatives, ("auto", "in_batch", "uniform", "shared"))
        _one_of("loss", "score", self.score, ("auto", "cosine", "dot"))
        _at_least("loss", "num_negatives", self.num_negatives, 1)
        if not self.temperature > 0:
            raise UserError(f"config: loss.temperature = {self.temperature} must be positive")
        if self.name == "bpr" and self.negatives == "in_batch":
            raise UserError("config: loss.negatives = 'in_batch' goes with loss.name = 'sampled_softmax'; use uniform")
        _at_least("loss", "uniformity", self.uniformity, 0.0)
        if self.name == "directau" and (self.negatives != "auto" or self.score == "dot"):
            raise UserError(
                "config: loss.name = 'directau' has no negatives and compares unit vectors; leave loss.negatives and "
                "loss.score out"
            )
        if self.logq and self.negatives_kind() != "in_batch":
            raise UserError("config: loss.logq = true goes with in-batch negatives; uniform ones need no correction")

    def negatives_kind(self) -> str:
        """`negatives` with `auto` resolved."""
        if self.negatives != "auto":
            return self.negatives
        return {"sampled_softmax": "in_batch", "bpr": "uniform", "directau": "none"}[self.name]

    @property
    def gathers(self) -> bool:
        """Whether every worker needs outputs of all workers."""
        return self.name == "directau" or self.negatives_kind() == "in_batch"

    def score_kind(self) -> str:
        """`score` with `auto` resolved."""
        if self.score != "auto":
            return self.score
        return "dot" if self.name == "bpr" else "cosine"


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One optimizer for the embeddings (lazy: only touched rows move) and the dense parameters."""

    name: str = "adam"  # lazy for the embeddings, as torch.optim.SparseAdam, and Adagrad, SGD on sparse gradients
    lr: float = 0.005  # of the embeddings
    dense_lr: float = 0.0  # 0: as `lr`
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # L2, added to the gradient of the rows touched and of the dense parameters

    def __post_init__(self) -> None:
        _one_of("optim", "name", self.name, ("adam", "adagrad", "sgd"))
        _at_least("optim", "lr", self.lr, 0.0)
        _at_least("optim", "dense_lr", self.dense_lr, 0.0)
        _between("optim", "beta1", self.beta1, 0.0, 1.0)
        _between("optim", "beta2", self.beta2, 0.0, 1.0)
        _at_least("optim", "eps", self.eps, 0.0)
        _at_least("optim", "weight_decay", self.weight_decay, 0.0)

    def n_moments(self) -> int:
        """Arrays of an embedding table's shape that the optimizer keeps beside it."""
        return {"adam": 2, "adagrad": 1, "sgd": 0}[self.name]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The schedule."""

    epochs: int = 20  # at most, for fit; full repeats as many as were best
    max_steps: int = 0  # > 0: `fit` alone, that many steps
    batch_size: int = 0  # global; 0: 2,048, or less on a small graph, for at least 32 steps an epoch
    eval_every: int = 1  # epochs; 0: never (then nothing stops early)
    patience: int = 3  # evaluations without a better validation NDCG@20
    log_every: int = 50  # steps in a record of metrics.jsonl
    phase: str = "both"  # fit: train edges, steered by validation; full: train and validation edges
    checkpoint_every: int = 0  # steps; 0: at the end of every epoch
    keep_checkpoints: int = 2  # newest of each phase, besides the best of fit

    def __post_init__(self) -> None:
        _at_least("train", "epochs", self.epochs, 1)
        _at_least("train", "max_steps", self.max_steps, 0)
        _at_least("train", "batch_size", self.batch_size, 0)
        _at_least("train", "eval_every", self.eval_every, 0)
        _at_least("train", "patience", self.patience, 1)
        _at_least("train", "log_every", self.log_every, 1)
        _at_least("train", "checkpoint_every", self.checkpoint_every, 0)
        _at_least("train", "keep_checkpoints", self.keep_checkpoints, 1)
        _one_of("train", "phase", self.phase, ("fit", "full", "both"))


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """From a teacher to tables of narrower rows, without a graph."""

    student: str = "embedding"  # a row of its own for every user and item
    dim: int = 30  # width; as int8 a row takes dim + 2 bytes
    epochs: int = 4  # over the teacher's training edges
    batch_size: int = 0  # global; 0: 2,048, or less on a small graph, for at least 32 steps an epoch
    lr: float = 0.005  # of lazy Adam; falls linearly to 0
    top: int = 100  # length of the teacher's list for each user, of items that the user does not have
    listed: int = 32  # of them drawn for every edge of a step, the head of the list more often
    negatives: int = 256  # items drawn uniformly for a step, shared by its edges
    temperature: float = 0.3  # divides the scores of teacher and student where their rankings are compared
    label_weight: float = 0.01  # of the true edges' in-batch softmax, beside the teacher's ranking

    def __post_init__(self) -> None:
        _one_of("distill", "student", self.student, ("embedding",))
        for key in ("dim", "epochs", "top", "listed", "negatives"):
            _at_least("distill", key, getattr(self, key), 1)
        for key in ("batch_size", "lr", "label_weight"):
            _at_least("distill", key, getattr(self, key), 0)
        if not self.temperature > 0:
            raise UserError(f"config: distill.temperature = {self.temperature} must be positive")
        if self.listed > self.top:
            raise UserError(f"config: distill.listed = {self.listed} is more than distill.top = {self.top}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Full-catalogue evaluation."""

    split: str = "test"  # valid ranks with the fit graph's edges masked, test with all training edges
    memory_gib: float = 1.0  # per worker, for scores and blocks of item rows
    sampled: bool = False  # also report inference on sampled neighbourhoods
    baselines: tuple[str, ...] = ()  # toppop, itemknn, gfcf, als: evaluated in the same table

    def __post_init__(self) -> None:
        _one_of("evaluate", "split", self.split, ("valid", "test"))
        if not self.memory_gib > 0:
            raise UserError(f"config: evaluate.memory_gib = {self.memory_gib} must be positive")
        for name in self.baselines:
            _one_of("evaluate", "baselines", name, ("toppop", "itemknn", "gfcf", "als"))


@dataclass(frozen=True, kw_only=True)
class BaselinesConfig:
    """Their few hyperparameters."""

    neighbors: int = 200  # itemknn: kept for each item, by cosine
    factors: int = 64  # als: width
    iterations: int = 15  # als: sweeps
    regularization: float = 1.0  # als: L2 on both factor matrices
    alpha: float = 0.0  # als: confidence of an interaction; 0: best of 1, 10, 40, 160 by validation NDCG@20
    singular_vectors: int = 256  # gfcf: ideal low-pass part
    low_pass_weight: float = 0.3  # gfcf: weight of the ideal part

    def __post_init__(self) -> None:
        for key in ("neighbors", "factors", "iterations", "singular_vectors"):
            _at_least("baselines", key, getattr(self, key), 1)
        for key in ("regularization", "alpha", "low_pass_weight"):
            _at_least("baselines", key, getattr(self, key), 0.0)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Workers and what each of them may use."""

    workers: int | tuple[int, ...] = 1  # processes; [min, max]: as many as there is room for, at each (re)start
    threads_per_worker: int = 0  # 0: the machine's cores shared out
    use_gpu: bool = False  # NCCL and CUDA devices instead of gloo and the CPU; not tested on real GPUs yet
    tables: str = "auto"  # embedding rows and moments: device (GPU), host, or auto: on the GPUs where they fit
    hot_rows: float = 0.0  # nodes of most edges whose rows every worker holds: a number, or a share below 1; exact
    feature_cache: float = 0.0  # others' nodes whose features a worker holds, as probably wanted: a number, or a share
    exchange: str = "auto"  # of rows and outputs between workers: memory of one host; messages; auto: what can be had
    wire: str = "float32"  # of rows, features and gradients between workers; float32: as they are; bfloat16: not exact
    ray: bool = False  # workers of a Ray cluster (RAY_ADDRESS) instead of processes; jobs/*.py turn it on
    timeout_seconds: float = 600.0  # a worker that keeps the others waiting for longer has failed
    max_failures: int = 3  # restarts from the last checkpoint after a worker's death or stall
    wait_seconds: float = 3600.0  # Ray: how long to wait for CPUs and GPUs that others hold, or that a lost node had
    resize_seconds: float = 60.0  # Ray, workers = [min, max]: how often a running job looks for room for another number

    def __post_init__(self) -> None:
        if isinstance(self.workers, tuple) and (len(self.workers) != 2 or self.workers[0] > self.workers[1]):
            raise UserError(f"config: cluster.workers = {list(self.workers)} must be a number or [min, max]")
        _at_least("cluster", "workers", self.min_workers, 1)
        _at_least("cluster", "threads_per_worker", self.threads_per_worker, 0)
        _one_of("cluster", "tables", self.tables, ("auto", "device", "host"))
        if self.tables == "device" and not self.use_gpu:
            raise UserError("config: cluster.tables = 'device' goes with cluster.use_gpu = true; leave it out")
        _one_of("cluster", "wire", self.wire, ("float32", "bfloat16"))
        _one_of("cluster", "exchange", self.exchange, ("auto", "memory", "messages"))
        if self.exchange == "memory" and (self.wire != "float32" or self.hot_rows):
            raise UserError(
                "config: cluster.exchange = 'memory' sends no rows for cluster.wire or cluster.hot_rows to save; leave "
                "them out, or set cluster.exchange = messages"
            )
        for key, value in (("hot_rows", self.hot_rows), ("feature_cache", self.feature_cache)):
            _at_least("cluster", key, value, 0.0)
            if value >= 1 and value % 1 != 0:
                raise UserError(f"config: cluster.{key} = {value} must be a whole number, or a share below 1")
        _at_least("cluster", "max_failures", self.max_failures, 0)
        _at_least("cluster", "wait_seconds", self.wait_seconds, 0.0)
        _at_least("cluster", "resize_seconds", self.resize_seconds, 0.0)
        if not self.timeout_seconds > 0:
            raise UserError(f"config: cluster.timeout_seconds = {self.timeout_seconds} must be positive")

    def n_hot(self, n_nodes: int) -> int:
        """`hot_rows` as a number, in a graph of so many nodes."""
        return _number_or_share(self.hot_rows, n_nodes)

    def n_cached(self, n_nodes: int) -> int:
        """`feature_cache` as a number, in a graph of so many nodes."""
        return _number_or_share(self.feature_cache, n_nodes)

    @property
    def min_workers(self) -> int:
        """The fewest to start with."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def max_workers(self) -> int:
        """The most to start with."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    def fitting_workers(self, room: int) -> int:
        """Workers to start where there is room for so many; never fewer than the minimum."""
        return min(max(room, self.min_workers), self.max_workers)


@dataclass(frozen=True, kw_only=True)
class RecommendConfig:
    """Top-k lists by a run's vectors (`run.path`), written to the .parquet or .csv file `run.out`."""

    k: int = 20  # items for each user
    users: str = ""  # .txt, .csv or .parquet file of user keys, or keys separated by commas; empty: every user
    allow: str = ""  # items that may be recommended, given likewise; empty: all
    block: str = ""  # items that may not, given likewise
    filter_seen: bool = True  # leave out what the user has in training
    unknown: str = "list"  # users not known to the run; list: only named; popular: they also get the popular items

    def __post_init__(self) -> None:
        _at_least("recommend", "k", self.k, 1)
        _one_of("recommend", "unknown", self.unknown, ("list", "popular"))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All sections. Build it with `load_config`, or directly with keyword arguments."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    recommend: RecommendConfig = field(default_factory=RecommendConfig)

    def __post_init__(self) -> None:
        if self.partition.parts and self.cluster.max_workers > self.partition.parts:
            raise UserError(
                f"config: cluster.workers = {self.cluster.max_workers} is more than partition.parts = "
                f"{self.partition.parts}; every worker needs a partition: raise parts or lower workers"
            )

        if self.cluster.wire == "bfloat16" and self.run.dtype == "float64":
            raise UserError(
                "config: cluster.wire = 'bfloat16' keeps 8 bits of a value that run.dtype = 'float64' wants exact; "
                "leave one of them out"
            )
        if self.model.matmul == "bfloat16" and self.run.dtype == "float64":
            raise UserError(
                "config: model.matmul = 'bfloat16' rounds products that run.dtype = 'float64' wants exact; "
                "leave one of them out"
            )
        if self.sampler.respects_time:
            self._check_time_respecting()
        if self.sampler.weighted:
            self._check_weighted()

    def _check_time_respecting(self) -> None:
        if self.loss.negatives == "shared":
            raise UserError(
                "config: loss.negatives = 'shared' has one row for all cut-offs and does not go with "
                "sampler.time_respecting = true; use uniform, or set sampler.time_respecting = false"
            )
        if self.data.input and not self.data.path and not self.data.timestamp_column:
            raise UserError(
                "config: sampler.time_respecting = true goes by timestamps; name their column in "
                "data.timestamp_column, or leave sampler.time_respecting out"
            )

    def _check_weighted(self) -> None:
        if self.sampler.respects_time:
            raise UserError(
                "config: sampler.weighted = true has tables of whole rows and does not go with "
                "sampler.time_respecting = true (auto, of a log split by time); set one of them to false"
            )
        if self.data.input and not self.data.path and not self.data.weight_column:
            raise UserError(
                "config: sampler.weighted = true goes by weights; name their column in data.weight_column, or leave "
                "sampler.weighted out"
            )

    @property
    def parts(self) -> int:
        """Number of partitions, `partition.parts = 0` resolved."""
        return self.partition.parts or self.cluster.max_workers

    def for_edges(self, n_fit: int) -> Config:
        """`train.batch_size = 0` and `distill.batch_size = 0` resolved for a graph of so many fit edges."""
        size = min(_MOST_BATCH, max(1, n_fit // _LEAST_STEPS))
        return dataclasses.replace(
            self,
            train=dataclasses.replace(self.train, batch_size=self.train.batch_size or size),
            distill=dataclasses.replace(self.distill, batch_size=self.distill.batch_size or size),
        )

    def for_log(self, split: str, timestamps: bool) -> Config:
        """`sampler.time_respecting = "auto"` resolved for a log that was split so, and has timestamps or none."""
        if self.sampler.time_respecting != "auto":
            return self
        on = split == "global_time" and timestamps
        return dataclasses.replace(self, sampler=dataclasses.replace(self.sampler, time_respecting=on))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dictionaries (tuples become lists)."""
        return {
            name: {k: list(v) if isinstance(v, tuple) else v for k, v in section.items()}
            for name, section in dataclasses.asdict(self).items()
        }

    def to_toml(self) -> str:
        """TOML text that `load_config` reads back to an equal Config."""
        return tomli_w.dumps(self.to_dict())
