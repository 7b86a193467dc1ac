"""Layer-wise learning-rate decay: layers far from the head get a smaller rate."""


def param_groups_lrd(model, weight_decay=0.05, layer_decay=0.75, no_weight_decay=("cls_token", "pos_embed")):
    """Parameter groups with an `lr_scale` that falls by `layer_decay` per layer (BEiT, arXiv 2106.08254;
    MAE).

    Layer 0 is the embeddings, layer i + 1 is `blocks.i`. The last layer is everything after the blocks, with
    a scale of 1: norms, the head and a segmentation head's blocks. `util.lr_sched.set_lr` applies the scale.

    Args:
        model: a model of `models_vit`; only parameters that require gradients count.
        weight_decay: of weights; 0 for parameters of one dimension (biases, norms) and of `no_weight_decay`.
        layer_decay: factor from layer to layer.
        no_weight_decay: names of more parameters without weight decay.

    Returns:
        A list of dicts with "params", "weight_decay" and "lr_scale", lowest layer first, for a torch
        optimizer.
    """
    last = len(model.blocks) + 1
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = _layer(name, last)
        decay = 0.0 if parameter.ndim == 1 or name in no_weight_decay else weight_decay
        group = {"params": [], "weight_decay": decay, "lr_scale": layer_decay ** (last - layer)}
        groups.setdefault((layer, decay), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _layer(name, last):
    module, _, rest = name.partition(".")
    if module in ("cls_token", "pos_embed", "patch_embed"):
        return 0
    return int(rest.partition(".")[0]) + 1 if module == "blocks" else last
