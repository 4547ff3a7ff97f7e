"""Every configuration key, once, with its default and what it means."""

from typing import TYPE_CHECKING, Any, TypeAlias

from ml_collections import ConfigDict, config_dict

# ml_collections gives every value the union of all types there are, so that no
# arithmetic with it would pass; a type checker takes a config for anything.
if TYPE_CHECKING:
    Config: TypeAlias = Any
else:
    Config = ConfigDict


def default_config() -> Config:
    """Every key with its default. Recipes set what differs."""
    config: Config = ConfigDict()

    # The recipe's name; the default work directory starts with it.
    config.name = "custom"
    # Decides initialisation, order of the examples, augmentation and dropout.
    config.seed = 0

    # --- Data ---
    # "digits" (embedded), a folder of images, a table (.csv, .tsv, .jsonl), arrays
    # (.npz), or a tensorflow-datasets name or folder; see docs/data.md.
    config.dataset = "digits"
    # Where tensorflow-datasets keeps its sets; empty = its own default.
    config.data_dir = ""
    # Splits as tensorflow-datasets writes them ("train[:98%]"); empty = the dataset's.
    config.train_split = ""
    config.eval_split = ""
    # (size,) or (height, width) in pixels.
    config.image_size = (224,)
    # Global: all devices and processes together, all microbatches together.
    config.batch_size = 512
    # Any number; rounded up to a multiple of the devices.
    config.eval_batch_size = 512
    # A training image that cannot be read: "replace" by another, "skip", or "error".
    config.bad_images = "replace"
    # The same in evaluation, where nothing may stand in for an image: "error", "skip".
    config.eval_bad_images = "error"
    # Share of unreadable training images, 0 to 1, that is too much: the run stops.
    config.max_bad_images = 0.1
    # Which examples: "uniform" = each once an epoch; "balanced" = all classes alike;
    # "weighted" = as the data's weights say (which else scale the examples' losses).
    config.sampling = "uniform"
    # Threads that read and decode; with processes, in each of these.
    config.loader_threads = 8
    # Processes that do so beside this one; 0 = its own threads alone (docs/data.md).
    config.loader_processes = 0

    config.augment = ConfigDict()
    # Chains of operations joined by "|"; vit_jax/data/transforms/chains.py lists them.
    config.augment.train = "inception_crop|flip_lr"
    config.augment.eval = "resize"
    # How often an example stands in a batch, each time augmented anew.
    config.augment.repeats = 1

    # Of whole batches, on the device; see vit_jax/objectives/mixing.py.
    config.mixing = ConfigDict()
    # "big_vision": mixup of every step; "timm": mixup and CutMix, by chance.
    config.mixing.form = "big_vision"
    # Both parameters of the beta distribution that mixup draws from; 0 = no mixup.
    config.mixing.mixup_alpha = 0.0
    # The same for CutMix, which only the form "timm" has; 0 = no CutMix.
    config.mixing.cutmix_alpha = 0.0
    # "timm": share of the steps that mix.
    config.mixing.prob = 1.0
    # "timm": share of the steps that mix with CutMix, where mixup is on as well.
    config.mixing.switch_prob = 0.5
    # Targets are 1 for every class that a mixed image shows, as in DeiT III; needs the
    # sigmoid loss.
    config.mixing.binary_targets = False
    # Random erasing: share of the images; 0 = none.
    config.mixing.erasing_prob = 0.0
    # Filled with noise "pixel" by pixel, one "rand" (random) colour, or the "const" 0.
    config.mixing.erasing_mode = "pixel"
    # Rectangles an image at most.
    config.mixing.erasing_count = 1

    # --- Model ---
    config.model = ConfigDict()
    # "B/16", "R50+B/16", "Mixer-B/16" and so on (vit_jax/models/variants.py);
    # empty = as in `pretrained`.
    config.model.variant = "B/16"
    # Sizes that differ from the variant's row; 0 = as in the row. Heads are a Vision
    # Transformer's, the hidden width across tokens an MLP-Mixer's.
    config.model.width = 0
    config.model.depth = 0
    config.model.mlp_dim = 0
    config.model.num_heads = 0
    config.model.tokens_mlp_dim = 0
    config.model.channels = 3
    # What the head reads: "cls" token, "gap" (mean over patches), "map" (attention).
    config.model.pooling = "cls"
    # "learned" or "sincos2d" position embeddings.
    config.model.posemb = "learned"
    config.model.registers = 0
    # Width of the tanh layer before the head; −1 = the model's width, 0 = none.
    config.model.pre_logits = 0
    # "tanh" approximation (Google's models) or "exact" (PyTorch's).
    config.model.gelu = "tanh"
    config.model.layernorm_epsilon = 1e-6
    # Initial value of LayerScale; 0 = no LayerScale.
    config.model.layer_scale = 0.0
    # Initial bias of the head; −10 suits the sigmoid loss over many classes.
    config.model.head_bias = 0.0
    config.model.dropout_rate = 0.0
    # Rate of stochastic depth in the last block; it grows linearly from 0.
    config.model.stochastic_depth = 0.0
    # Formulation of attention: "xla", "pallas" (kernels for the TPU), "cudnn" (fused,
    # on GPUs), "per_head" (for CPUs) or "explicit"; "auto" = the fastest of those that
    # prove right at the start of the run. See docs/performance.md.
    config.model.attention = "auto"
    # Compile one block and loop over it: for deep models, with remat.
    config.model.scan = False
    # What the backward pass computes again, to save memory: "none", the "attention"
    # core, all but "dots" (the products with parameters), "full" (everything); or
    # "offload" those products to the host's memory (docs/parallelism.md).
    config.model.remat = "none"

    # --- Starting point ---
    # Weights to start from: a work directory, a file or directory in Google's,
    # big_vision's, timm's or Hugging Face's format, a published name
    # (python -m vit_jax.models), hf:owner/name, an address; empty = random weights.
    config.pretrained = ""
    # Start with a new, zero head, as the paper fine-tunes; False keeps the pretrained
    # head, which needs the same classes.
    config.reset_head = True
    # How position embeddings move to another grid: "bicubic", "bicubic_torch",
    # "bilinear", "google" (vit_jax/models/positions.py).
    config.posemb_resize = "bicubic"

    # --- What is learned ---
    # "classification", or a class of your own as "package.module:Name", found on
    # Python's path (vit_jax/objectives/protocol.py).
    config.objective = "classification"
    # Arguments of that class, by name; your own objective says which it takes.
    config.objective_options = ConfigDict()

    # --- Loss and optimiser ---
    # "softmax", or "sigmoid": one yes-or-no question a class.
    config.loss = "softmax"
    config.label_smoothing = 0.0
    # "adamw", "sgd" (with momentum) or "adafactor", which keeps of a matrix's second
    # moments the means of rows and columns (vit_jax/optim/chain.py).
    config.optimizer = "adamw"
    config.b1 = 0.9
    # Of adafactor the largest decay of the second moments.
    config.b2 = 0.999
    # Of sgd and adafactor.
    config.momentum = 0.9
    # Of the first moment or momentum: "float32" or "bfloat16".
    config.momentum_dtype = "float32"
    # Keep the optimiser's state in the host's memory, and move it to the devices for
    # every update (docs/parallelism.md).
    config.offload_optimizer = False
    # Decoupled: multiplied by the learning rate, as in optax.adamw.
    config.weight_decay = 0.0
    # Regular expression: which parameters decay, by full path ("blocks_00/mlp/fc1/…").
    config.weight_decay_on = ".*kernel"
    # How single parameters are trained, as rows "PATTERN: SETTING, SETTING" joined by
    # ";". Settings: frozen, lr=FACTOR, decay=WEIGHT_DECAY, rule=OPTIMIZER, start=STEP.
    # The first row whose pattern matches the whole path counts; what it does not set
    # stays (vit_jax/optim/groups.py).
    config.groups = ""
    # Layer-wise decay: the learning rate of each block is so many times that of the
    # block after it; 1 = all alike. 0.65 to 0.75 suit fine-tuning after masked
    # pretraining.
    config.layer_decay = 1.0
    # Global norm; 0 = no clipping.
    config.grad_clip_norm = 1.0
    # Decay of the moving average of the parameters, such as 0.9999; 0 = no average. It
    # is evaluated too (split "eval_ema"), saved, and what predict and load prefer.
    config.ema_decay = 0.0
    # Less at first: min(ema_decay, (1 + t) / (10 + t)) at t finished updates.
    config.ema_warmup = False
    # When the loss or the gradient is not finite, or a spike: "stop" the run, or "skip"
    # that update and go on. Either way it is in metrics.jsonl.
    config.bad_update = "stop"
    # A spike is a loss of so many times its running mean; 0 = nothing is one.
    config.max_loss_spike = 0.0
    # Microbatches a step; the gradients are those of the whole batch.
    config.accum_steps = 1

    # --- Schedule ---
    # The peak; reached after the warm-up.
    config.learning_rate = 1e-3
    # After the warm-up: "constant", "linear", "cosine", "rsqrt".
    config.schedule = "cosine"
    config.warmup_steps = 0
    # Where "linear" ends.
    config.end_learning_rate = 0.0
    # "rsqrt": 1/√(1 + t/timescale), then linearly to 0 over the last cooldown_steps.
    config.rsqrt_timescale = 10_000
    config.cooldown_steps = 0
    # Give one of the two; on the command line one clears the recipe's other.
    config.total_steps = config_dict.placeholder(int)
    config.total_epochs = config_dict.placeholder(float)

    # --- Devices and numbers ---
    config.mesh = ConfigDict()
    # Devices the batch is spread over; −1, in one of the three, = all that are left.
    config.mesh.data = -1
    # Also spread over them: parameters, gradients and optimiser state (ZeRO-3).
    config.mesh.fsdp = 1
    # Devices that attention heads and the MLPs' hidden units are spread over.
    config.mesh.tensor = 1
    # Of activations: "float32", "bfloat16"; "auto" = bfloat16 on TPU and GPU.
    config.compute_dtype = "auto"
    # Go on although an accelerator is there and JAX sees only the CPU.
    config.allow_cpu = False

    # --- Evaluators ---
    # What is measured besides the loss and accuracy of the labels: name → its `kind`
    # (a name in vit_jax/evaluators/choosing.py, or package.module:Name of your own),
    # `every` so many steps (0 = at the end), where they differ `dataset`, `data_dir`,
    # `split`, `train_split`, `batch_size`, and options of that kind. A recipe sets
    # config.evaluators = ConfigDict({"NAME": {"kind": …, "every": …}}).
    config.evaluators = ConfigDict()

    # --- Reports and checkpoints, in steps ---
    config.log_every = 50
    # 0 = only at the end.
    config.eval_every = 0
    config.checkpoint_every = 1000
    # The newest so many stay.
    config.keep_checkpoints = 2
    # The best by a metric of the evaluations stays too ("top1", "top5", "loss", or
    # "NAME/METRIC" of one of the `evaluators`), and an evaluation that is better than
    # all before saves one; "" = none.
    config.keep_best = ""
    # First and last step, counted from 1, that are traced for XProf; (0, 0) = none.
    config.profile_steps = (0, 0)
    # Project of Weights & Biases that gets the metrics too, by the extra [wandb];
    # "" = none.
    config.wandb_project = ""
    # Also write each class's accuracy to metrics.jsonl.
    config.per_class = False
    return config.lock()


# Keys that say what the model is. With an empty variant the pretrained file says it.
SIZE_KEYS = ("width", "depth", "mlp_dim", "num_heads", "tokens_mlp_dim")
ARCHITECTURE_KEYS = (
    *SIZE_KEYS,
    "channels",
    "pooling",
    "posemb",
    "registers",
    "gelu",
    "layernorm_epsilon",
    "layer_scale",
)

# Keys that say where and how a run computes, and what it reports. They change its
# numbers by no more than rounding and the draws of dropout, so a run may go on with
# other values of them.
FREE_TO_CHANGE = (
    "evaluators",  # with all that is in it
    "data_dir",
    "eval_batch_size",
    "loader_threads",
    "loader_processes",
    "model.attention",
    "model.remat",
    "offload_optimizer",
    "accum_steps",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "allow_cpu",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "profile_steps",
    "wandb_project",
    "per_class",
)
