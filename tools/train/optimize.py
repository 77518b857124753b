"""The optimizer of the recipe: bfloat16 weights in the network, float32 masters beside it."""

import torch


class Optimizer:
    """Muon for the blocks' matrices, AdamW for the rest; warm-up, then a linear way to zero."""

    def __init__(self, modules, rate, steps, warmup=0.05):
        self.pairs = [
            (parameter, parameter.detach().float().clone().requires_grad_())
            for module in modules
            for parameter in module.parameters()
        ]
        matrices, others = [], []
        for name, (_, master) in zip(names(modules), self.pairs, strict=False):
            is_matrix = master.ndim == 2 and "blocks." in name
            (matrices if is_matrix else others).append(master)
        self.optimizers = [
            torch.optim.Muon(
                matrices,
                lr=rate,
                weight_decay=0.05,
                momentum=0.95,
                ns_steps=4,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        first = max(1, int(warmup * steps))

        def share(step):
            return min((step + 1) / first, max(0.0, (steps - step) / (steps - first)))

        schedule = torch.optim.lr_scheduler.LambdaLR
        self.schedules = [schedule(optimizer, share) for optimizer in self.optimizers]

    def step(self):
        """Moves the masters and copies them into the network; parameters unused stay."""
        for parameter, master in self.pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=False):
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            for parameter, master in self.pairs:
                parameter.copy_(master)

    def restore(self):
        """Gives the network its float32 weights."""
        for parameter, master in self.pairs:
            parameter.data = master.detach().clone()


def names(modules):
    """Returns the parameters' names in the order of `modules`."""
    return [name for module in modules for name, _ in module.named_parameters()]
