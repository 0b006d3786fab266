from torch import Tensor, nn

from tmapdiff.layers import GatedConv2d, MultiplyConditioning, StylizationBlock
from tmapdiff.layers._modules import is_plain


class Other(Tensor):
    """A subclass of weights."""


def test_what_adds_to_a_call_has_to_be_called() -> None:
    layer, everywhere = nn.Linear(2, 2), nn.modules.module
    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
        everywhere.register_module_forward_hook,
        everywhere.register_module_forward_pre_hook,
        everywhere.register_module_full_backward_hook,
    ):
        assert is_plain(layer, nn.Conv2d, nn.Linear)
        hook = register(lambda *_: None)  # type: ignore[operator]
        assert not is_plain(layer, nn.Linear), register
        hook.remove()
    assert not is_plain(layer, nn.Conv2d)
    weight = layer.weight.detach()
    layer._parameters["weight"] = weight  # as torch.func.functional_call does
    assert is_plain(layer, nn.Linear)
    layer._parameters["weight"] = weight.as_subclass(Other)
    assert not is_plain(layer, nn.Linear)
    del layer.weight
    layer.weight = weight.as_subclass(Other)
    assert not is_plain(layer, nn.Linear)


def test_options_are_shown() -> None:
    for layer, text in (
        (GatedConv2d(3, 4, gate="channel"), "gate=channel\n  (conv): MapConv2d(3, 8, kernel_size"),
        (MultiplyConditioning(3, 2, "gated"), "product=gated"),
        (StylizationBlock(6, 4, num_groups=3), "norm=group, num_groups=3\n"),
    ):
        assert text in repr(layer)
