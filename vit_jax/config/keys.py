"""All configuration keys, with their defaults and meanings."""

from typing import TYPE_CHECKING, Any, TypeAlias

from ml_collections import ConfigDict, config_dict

# ml_collections types every value as the union of all possible types, so arithmetic
# with one would never pass a type checker; for the checker, a config is Any.
if TYPE_CHECKING:
    Config: TypeAlias = Any
else:
    Config = ConfigDict


def default_config() -> Config:
    """Makes a config with every key at its default; recipes set those that differ."""
    config: Config = ConfigDict()

    # The recipe's name; the default work directory starts with it.
    config.name = "custom"
    # Determines initialisation, order of the examples, augmentation and dropout.
    config.seed = 0

    # --- Data ---
    # "digits" (embedded), a folder of images, a table (.csv, .tsv, .jsonl), arrays
    # (.npz, or IDX files), or a tensorflow-datasets name or folder; see docs/data.md.
    config.dataset = "digits"
    # Where tensorflow-datasets keeps its data sets; empty = its own default.
    config.data_dir = ""
    # How the files of the data set are read where they do not say it themselves; see
    # vit_jax/data/sources/options.py.
    config.data = ConfigDict()
    # "image folder", "table", "arrays", "tensorflow-datasets"; "unlabelled" = a folder
    # of images without labels; "" = recognised.
    config.data.kind = ""
    # The folder (or value of a table's split column) of each split, as in
    # "train=Training,val=Dev Set"; "none" = every folder is a class; "" = recognised.
    config.data.splits = ""
    # Share of the training data to hold out if nothing else is for evaluation.
    config.data.hold_out = 0.1
    # The value that is white in images of more than 8 bits per channel whose file does
    # not say it, such as 4095 for 12 bits stored as 16; 0 = the largest of 16 bits.
    config.data.white_level = 0.0
    # Version of the rules for endings, splits, order of classes, held-out images, and
    # boxes of inception_crop in images below 64 pixels; 0 = those that the run began
    # with, and the newest for a new run.
    config.data.rules = 0
    # Tables: the column of images, and of labels (or several columns of zeros and ones,
    # one per class: "cat,dog" or "class_*"); "" = recognised by their names.
    config.data.path_column = ""
    config.data.label_columns = ""
    # Text between several labels in one cell.
    config.data.label_separator = "|"
    # The column of splits; "none" = there is none; "" = recognised.
    config.data.split_column = ""
    # The column of groups (patients, ...) that are held out as a whole; "" = none.
    config.data.group_column = ""
    # The folder that paths are relative to, from the table's folder; and the ending to
    # append to paths that have none, such as ".jpg".
    config.data.image_root = ""
    config.data.image_suffix = ""
    # Splits in tensorflow-datasets' syntax ("train[:98%]"); empty = the dataset's.
    config.train_split = ""
    config.eval_split = ""
    # (size,) or (height, width) in pixels.
    config.image_size = (224,)
    # Mean and deviation of the values that the model sees: "symmetric" (0 … 255 becomes
    # −1 … 1), "imagenet", "clip"; "" = those of `pretrained`, else "symmetric". With
    # weights that expect others, it is an error.
    config.normalization = ""
    # Global: over all devices, processes and microbatches.
    config.batch_size = 512
    # Any number; rounded up to a multiple of the devices.
    config.eval_batch_size = 512
    # What to do with an unreadable training image: "replace" it by another, "skip" it,
    # or stop with an "error".
    config.bad_images = "replace"
    # For evaluation, where no image may be replaced by another: "error" or "skip".
    config.eval_bad_images = "error"
    # The run stops if more than this share of the training images, 0 to 1, is
    # unreadable.
    config.max_bad_images = 0.1
    # How examples are drawn: "uniform" = each once per epoch; "balanced" = all classes
    # equally often; "weighted" = by the data's weights (which otherwise scale the
    # examples' losses).
    config.sampling = "uniform"
    # Threads that read and decode images; with loader processes, in each of them.
    config.loader_threads = 8
    # Additional processes that read and decode; 0 = threads of this one (docs/data.md).
    config.loader_processes = 0

    config.augment = ConfigDict()
    # Chains of operations joined by "|"; vit_jax/data/transforms/chains.py lists them.
    config.augment.train = "inception_crop|flip_lr"
    config.augment.eval = "resize"
    # How many times an example occurs in a batch, each time with a new augmentation.
    config.augment.repeats = 1

    # Mixing of whole batches, on the device; see vit_jax/objectives/mixing.py.
    config.mixing = ConfigDict()
    # "big_vision": mixup in every step; "timm": mixup and CutMix, at random.
    config.mixing.form = "big_vision"
    # Both parameters of the beta distribution that mixup draws from; 0 = no mixup.
    config.mixing.mixup_alpha = 0.0
    # Both parameters of CutMix's beta distribution; 0 = no CutMix. Form "timm" only.
    config.mixing.cutmix_alpha = 0.0
    # "timm": share of the steps that mix.
    config.mixing.prob = 1.0
    # "timm": share of the mixing steps that use CutMix, if mixup is on as well.
    config.mixing.switch_prob = 0.5
    # Targets are 1 for every class in a mixed image, as in DeiT III; needs the sigmoid
    # loss.
    config.mixing.binary_targets = False
    # Random erasing: share of the images; 0 = none.
    config.mixing.erasing_prob = 0.0
    # Fill: noise "pixel" by pixel, one "rand" (random) colour, or the "const" 0.
    config.mixing.erasing_mode = "pixel"
    # Maximum number of rectangles per image.
    config.mixing.erasing_count = 1

    # --- Model ---
    config.model = ConfigDict()
    # "B/16", "R50+B/16", "Mixer-B/16" and so on (vit_jax/models/variants.py);
    # empty = as in `pretrained`.
    config.model.variant = "B/16"
    # Sizes that differ from the variant's; 0 = the variant's. Only a Vision Transformer
    # has num_heads, only an MLP-Mixer tokens_mlp_dim (the hidden width across tokens).
    config.model.width = 0
    config.model.depth = 0
    config.model.mlp_dim = 0
    config.model.num_heads = 0
    config.model.tokens_mlp_dim = 0
    config.model.channels = 3
    # Input of the head: "cls" token, "gap" (mean over patches), "map" (attention), or
    # "cls_gap" (token and mean side by side, as DINOv2's classifiers).
    config.model.pooling = "cls"
    # Whether there is a class token: "on", "off", or "auto" = if the pooling reads it.
    config.model.class_token = "auto"
    # Whether it has a position of its own: "on", "off", or "auto" = if positions are
    # learned.
    config.model.class_token_position = "auto"
    # The final norm is applied to all tokens, "before_pool", or as in MAE's fine-tuning
    # to their mean, "after_pool"; weights that have it before pooling get a new one.
    config.model.norm = "before_pool"
    # "learned" or "sincos2d" position embeddings.
    config.model.posemb = "learned"
    # Lowest frequency of sin-cos positions: as in "big_vision" or as in "mae".
    config.model.sincos_denominator = "big_vision"
    config.model.registers = 0
    # A second class token with a head of its own (arXiv:2012.12877), which learns from
    # the teachers of the objective "distillation"; predictions are the mean of both
    # heads.
    config.model.distillation_token = False
    # Width of the tanh layer before the head; −1 = the model's width, 0 = none.
    config.model.pre_logits = 0
    # "tanh" approximation (Google's models) or "exact" (PyTorch's).
    config.model.gelu = "tanh"
    config.model.layernorm_epsilon = 1e-6
    # Initial value of LayerScale; 0 = no LayerScale.
    config.model.layer_scale = 0.0
    # Initial bias of the head; −10 suits the sigmoid loss over many classes.
    config.model.head_bias = 0.0
    # Standard deviation of the head's initial kernel, which is normal around 0; 0 = all
    # zeros. MAE fine-tunes from 2e-5 and probes from 0.01, DeiT starts at 0.02.
    config.model.head_std = 0.0
    config.model.dropout_rate = 0.0
    # Rate of stochastic depth in the last block.
    config.model.stochastic_depth = 0.0
    # Its rates in the other blocks: "linear" = growing from 0 in the first block to
    # that, "constant" = the same in all (DeiT III).
    config.model.stochastic_depth_form = "linear"
    # Formulation of attention: "xla", "pallas" (TPU kernels), "cudnn" (fused, on GPUs),
    # "per_head" (for CPUs) or "explicit"; "auto" = the fastest that gives correct
    # results when tried at the start of the run. See docs/performance.md.
    config.model.attention = "auto"
    # Compile one block and loop over it: for deep models, with remat.
    config.model.scan = False
    # What the backward pass recomputes to save memory: "none", the "attention" core,
    # all but "dots" (the products with parameters), "full" (everything); or "offload"
    # those products to the host's memory (docs/parallelism.md).
    config.model.remat = "none"

    # --- Starting point ---
    # Weights to start from: a work directory, a file or directory in Google's,
    # big_vision's, timm's, torchvision's, mmpretrain's or Hugging Face's format, a
    # published name (python -m vit_jax.models), hf:owner/name, a URL; empty = random
    # weights. #entry=NAME at its end names one of several models in a file.
    config.pretrained = ""
    # Start with a new head, as in the paper's fine-tuning; False keeps the
    # pretrained head, whose outputs are matched with the classes by name; if the
    # weights do not name theirs, they must be in the order of the data's.
    config.reset_head = True
    # How position embeddings are resized to another grid: "bicubic", "bicubic_torch",
    # "bicubic_offset", "bilinear", "google" (vit_jax/models/positions.py).
    config.posemb_resize = "bicubic"

    # Low-rank adapters (LoRA, arXiv:2106.09685) beside dense layers of the pretrained
    # model: only these, the head and what the objective adds are trained.
    config.lora = ConfigDict()
    # The width between an adapter's two matrices; 0 = no adapters.
    config.lora.rank = 0
    # What an adapter adds is multiplied by alpha / rank; 0 = alpha is the rank.
    config.lora.alpha = 0.0
    # The layers with adapters: "query", "key", "value", "out", "fc1", "fc2", joined by
    # ","; "attention" = the first four, "mlp" = the last two, "all".
    config.lora.targets = "query,value"
    # Multiply by alpha / √rank instead (rsLoRA, arXiv:2312.03732).
    config.lora.rank_stabilized = False
    # Dropout rate of the adapters' inputs.
    config.lora.dropout = 0.0

    # Visual prompts (VPT, arXiv:2203.12119): learned tokens beside those of the image;
    # only these, the head and what the objective adds are trained.
    config.prompts = ConfigDict()
    # Number of prompts; 0 = none.
    config.prompts.count = 0
    # Every block has its own, in place of those of the block before.
    config.prompts.deep = False
    # Dropout rate of their elements.
    config.prompts.dropout = 0.0

    # --- Objective ---
    # "classification", "distillation", "linear_probe", "masked_autoencoding",
    # "masked_patches", "self_distillation", or a class of your own as
    # "package.module:Name", found on Python's path (vit_jax/objectives/protocol.py).
    config.objective = "classification"
    # Arguments of that class, by name; vit_jax/objectives/ has those of each.
    config.objective_options = ConfigDict()

    # --- Loss and optimiser ---
    # "softmax", or "sigmoid": one yes-or-no question per class. Focal losses of the two
    # kinds: "softmax_focal", "sigmoid_focal"; for several labels also "asymmetric".
    config.loss = "softmax"
    # Options of that loss, such as "gamma", and for classes of unequal numbers of
    # images "class_weights", "logit_adjustment", "pos_weight"; see docs/training.md.
    config.loss_options = ConfigDict()
    # Share of each target that is spread evenly over all classes.
    config.label_smoothing = 0.0
    # "adamw", "sgd" (with momentum), "adafactor", which keeps only the row and column
    # means of a matrix's second moments, or for large batches "lamb" and "lars", whose
    # updates are in proportion to the parameters' norms (vit_jax/optim/rules.py).
    config.optimizer = "adamw"
    # AdamW and LAMB.
    config.b1 = 0.9
    # AdamW and LAMB: decay of the second moments; Adafactor: upper limit on that decay.
    config.b2 = 0.999
    # AdamW and LAMB: added to the root of the second moments.
    config.eps = 1e-8
    # SGD, Adafactor and LARS.
    config.momentum = 0.9
    # dtype of the first moment or momentum: "float32" or "bfloat16".
    config.momentum_dtype = "float32"
    # Keep the optimiser's state in the host's memory, and move it to the devices for
    # every update (docs/parallelism.md).
    config.offload_optimizer = False
    # Decoupled: multiplied by the learning rate, as in optax.adamw.
    config.weight_decay = 0.0
    # Value at the end of the run, approached along half a cosine; unset = constant. The
    # decays of `groups` change in proportion.
    config.weight_decay_end = config_dict.placeholder(float)
    # Regular expression for the full paths ("blocks_00/mlp/fc1/…") of the parameters
    # that decay.
    config.weight_decay_on = ".*kernel"
    # Parameters that never change, and have neither gradient nor optimiser state:
    # patterns joined by ",". A pattern is a regular expression for the full path, or a
    # named set: "head", "backbone", "blocks", "attention", "mlp", "biases", "bitfit"
    # (biases and head), "norms", "layer_scale", "patches", "trunk", "positions",
    # "tokens", "map_head" (vit_jax/optim/freezing.py). "" = none.
    config.freeze = ""
    # The same from the other side: the only parameters that are trained. "" = all.
    config.train_only = ""
    # Updates at the start that train only the head, and what the objective adds beside
    # the model; the backbone, its optimiser included, begins after them.
    config.head_only_steps = 0
    # How individual parameters are trained, as rows "PATTERN: SETTING, SETTING" joined
    # by ";". Settings: frozen, trained, lr=FACTOR, decay=WEIGHT_DECAY, rule=OPTIMIZER,
    # start=STEP, begin=STEP, clip=NORM (of all gradients of the row together). The
    # first row whose pattern matches the whole path applies; settings that it leaves
    # out keep their values (vit_jax/optim/groups.py).
    config.groups = ""
    # Layer-wise decay: ratio of each block's learning rate to that of the next block;
    # 1 = all equal. 0.65 to 0.75 suit fine-tuning after masked pretraining.
    config.layer_decay = 1.0
    # Its layers: "mae" = the final norm has the head's rate, as in BEiT and MAE; "timm"
    # = that of the last block, as in timm since 0.8.
    config.layer_decay_form = "mae"
    # Lower limit of its factors (timm's min_scale).
    config.layer_decay_min = 0.0
    # Maximum global norm of the gradients; 0 = no clipping. Applied after `clip` of
    # `groups` and after grad_clip_adaptive.
    config.grad_clip_norm = 1.0
    # Adaptive clipping (AGC, arXiv:2102.06171): maximum norm of each output's gradient,
    # in proportion to that of its weights, such as 0.01; 0 = no clipping. The head is
    # left out. Published runs have grad_clip_norm=0 beside it.
    config.grad_clip_adaptive = 0.0
    # Maximum norm of each parameter's gradient, as in DINO; 0 = no clipping. Query, key
    # and value of a block count as one parameter.
    config.grad_clip_parameter_norm = 0.0
    # Decay of the moving average of the parameters, such as 0.9999; 0 = no average. It
    # is also evaluated (split "eval_ema") and saved; predict and load prefer it.
    config.ema_decay = 0.0
    # Smaller decay at first: min(ema_decay, (1 + t) / (10 + t)) at t finished updates.
    config.ema_warmup = False
    # If the loss or the gradient is not finite, or the loss spikes: "stop" the run, or
    # "skip" that update and continue. Either way, metrics.jsonl records it.
    config.bad_update = "stop"
    # A loss of more than this many times its running mean is a spike; 0 = no limit.
    config.max_loss_spike = 0.0
    # Microbatches per step; the gradients are those of the whole batch.
    config.accum_steps = 1

    # --- Schedule ---
    # The peak, reached after the warm-up.
    config.learning_rate = 1e-3
    # After the warm-up: "constant", "linear", "cosine", "rsqrt".
    config.schedule = "cosine"
    config.warmup_steps = 0
    # The rate from which the warm-up starts.
    config.warmup_learning_rate = 0.0
    # Final value of "cosine".
    config.min_learning_rate = 0.0
    # Final value of "linear".
    config.end_learning_rate = 0.0
    # "rsqrt": 1/√(1 + t/timescale), then linearly to 0 over the last cooldown_steps.
    config.rsqrt_timescale = 10_000
    config.cooldown_steps = 0
    # Set one of the two; on the command line, one clears the recipe's other.
    config.total_steps = config_dict.placeholder(int)
    config.total_epochs = config_dict.placeholder(float)

    # --- Devices and numbers ---
    config.mesh = ConfigDict()
    # Devices that the batch is sharded over; −1, allowed for one of the three, = all
    # remaining devices.
    config.mesh.data = -1
    # Devices that the batch and also parameters, gradients and optimiser state are
    # sharded over (ZeRO-3).
    config.mesh.fsdp = 1
    # Devices that attention heads and the MLPs' hidden units are sharded over.
    config.mesh.tensor = 1
    # dtype of activations: "float32", "bfloat16"; "auto" = bfloat16 on TPU and GPU.
    config.compute_dtype = "auto"
    # Train on the CPU even if the machine has an accelerator that JAX does not see.
    config.allow_cpu = False

    # --- Evaluators ---
    # Measurements besides the loss and accuracy of the labels: name → its `kind` (a
    # name in vit_jax/evaluators/choosing.py, or your own package.module:Name), `every`
    # (a number of steps; 0 = only at the end), and, where they differ from the run's,
    # `dataset`, `data_dir`, `data` (as above), `split`, `train_split`, `batch_size`;
    # also options of that kind. A recipe sets
    # config.evaluators = ConfigDict({"NAME": {"kind": …, "every": …}}).
    config.evaluators = ConfigDict()

    # --- Reports and checkpoints, in steps ---
    config.log_every = 50
    # 0 = only at the end.
    config.eval_every = 0
    config.checkpoint_every = 1000
    # Number of the newest checkpoints to keep.
    config.keep_checkpoints = 2
    # Whether checkpoints hold the parameters that are frozen at pretrained values:
    # "yes"; "no" = they are read from `pretrained` again wherever they are needed;
    # "auto" = "no" for a run with adapters, else "yes".
    config.save_frozen = "auto"
    # Metric by which the best checkpoint is kept too ("top1", "loss", "macro_f1",
    # "mean_average_precision" … as in docs/evaluation.md, or "NAME/METRIC" of one of
    # the `evaluators`); an evaluation that is better than all before it saves one.
    # "" = none.
    config.keep_best = ""
    # Early stopping: the run ends after so many evaluations in a row without a better
    # value of `patience_metric`; 0 = it always trains to the end.
    config.patience = 0
    # The metric, named as for `keep_best`; "" = that of `keep_best`.
    config.patience_metric = ""
    # A value is better if it exceeds the best one by more than this.
    config.patience_min_delta = 0.0
    # First and last step, counted from 1, to trace for XProf; (0, 0) = none.
    config.profile_steps = (0, 0)
    # Weights & Biases project to which metrics are also sent; needs the extra [wandb].
    # "" = none.
    config.wandb_project = ""
    # Also write each class's accuracy to metrics.jsonl.
    config.per_class = False
    return config.lock()


# Keys that define the model. With an empty variant, the pretrained file defines it.
SIZE_KEYS = ("width", "depth", "mlp_dim", "num_heads", "tokens_mlp_dim")
ARCHITECTURE_KEYS = (
    *SIZE_KEYS,
    "channels",
    "pooling",
    "class_token",
    "class_token_position",
    "norm",
    "posemb",
    "sincos_denominator",
    "registers",
    "distillation_token",
    "gelu",
    "layernorm_epsilon",
    "layer_scale",
)

# Keys that determine where and how a run computes, what it reports, and whether it ends
# early. They change its numbers by no more than rounding and the draws of dropout, so a
# run may continue with other values.
FREE_TO_CHANGE = (
    "evaluators",  # and every key inside it
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
    "patience",
    "patience_metric",
    "patience_min_delta",
    "profile_steps",
    "wandb_project",
    "per_class",
)
