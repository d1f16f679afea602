"""The networks that judge or guide the encoder: LPIPS, ResNet-50 features, ArcFace identity, latent discriminator; and
Ranger."""

import copy
import math

import pytest
import torch
from conftest import ball_generator
from torch import nn

from preim3d.irse import IdentityNetwork
from train.inversion import identity, latent_discriminator
from train.inversion.features import FeatureNetwork, load_features
from train.inversion.latent_discriminator import LatentDiscriminator
from train.inversion.lpips import Lpips, load_lpips
from train.inversion.ranger import Ranger


# torchvision's names and shapes of convolutions: index in `features` -> (out, in, side).
ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG16 = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256),
         17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}  # fmt: skip


def torchvision_file(path, convolutions):
    """A file as torchvision's, of random weights: with the classifier, which LPIPS does not read."""
    state = {"classifier.6.weight": torch.zeros(10, 4)}
    for index, (outputs, inputs, *side) in convolutions.items():
        side = side[0] if side else 3
        state[f"features.{index}.weight"] = torch.randn(outputs, inputs, side, side) * (inputs * side**2) ** -0.5
        state[f"features.{index}.bias"] = torch.zeros(outputs)
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    ("convolutions", "channels"), [(ALEXNET, (64, 192, 384, 256, 256)), (VGG16, (64, 128, 256, 512, 512))]
)
def test_lpips_reads_torchvisions_files(tmp_path, convolutions, channels):
    torch.manual_seed(0)
    state = torchvision_file(tmp_path / "net.pth", convolutions)
    network = load_lpips(tmp_path / "net.pth")
    assert tuple(len(row) for row in network.linear) == channels
    assert torch.equal(network.features[0].weight, state["features.0.weight"])
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert network(images, images) == 0 and network(images, -images) > 1e-3

    torch.save({f"lin{i}.model.1.weight": torch.full((1, n, 1, 1), 0.5) for i, n in enumerate(channels)},
               tmp_path / "linear.pth")  # fmt: skip
    weighed = load_lpips(tmp_path / "net.pth", tmp_path / "linear.pth")
    assert all((row == 0.5).all() for row in weighed.linear)


def test_lpips_ends_its_slices_at_the_published_layers():
    # AlexNet: the five ReLUs. VGG-16: relu1_2, 2_2, 3_3, 4_3, 5_3. Counted in torchvision's `features`.
    assert Lpips("alexnet").ends == [2, 5, 8, 10, 12]
    assert Lpips("vgg16").ends == [4, 9, 16, 23, 30]


def test_lpips_by_hand():
    network = Lpips("alexnet").requires_grad_(False)
    network._maps = lambda images: [images]  # unit features in, so that the sum over channels is known
    network.linear = nn.ParameterList([torch.tensor([1.0, 2.0, 3.0])])
    a, b = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    a[:, 0], b[:, 1] = 1, 1
    assert network(a, b) == 1 + 2


def test_lpips_refuses_other_files(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="alexnet"):
        load_lpips(tmp_path / "net.pth")
    torchvision_file(tmp_path / "net.pth", {0: ALEXNET[0]})
    with pytest.raises(ValueError, match="lacks features.10.bias"):
        load_lpips(tmp_path / "net.pth")


def test_features_read_moco_and_torchvision(tmp_path):
    torch.manual_seed(0)
    network = FeatureNetwork().eval()
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 25_557_032 - 2_049_000  # torchvision's, less its last layer
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(2))
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "resnet50.pth")
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}}, tmp_path / "moco.pth")
    for name in ("resnet50.pth", "moco.pth"):
        with torch.no_grad():
            assert torch.equal(load_features(tmp_path / name)(images), expected)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no ResNet-50"):
        load_features(tmp_path / "other.pth")


def test_an_identity_network_is_a_folder_or_the_published_file(tmp_path):
    torch.manual_seed(0)
    sizes = {"input_size": 32, "units": (1, 1, 1, 1), "depths": (16, 16, 16, 16), "feature_dim": 8}
    network = IdentityNetwork(**sizes).eval()
    network.save_pretrained(tmp_path / "identity")
    loaded = identity.load_identity(tmp_path / "identity")
    assert torch.equal(loaded.output_layer[3].weight, network.output_layer[3].weight)
    encoder = identity.encoder_from_identity(ball_generator(), loaded, 64)
    assert torch.equal(encoder.body[0].res_layer[1].weight, network.body[0].res_layer[1].weight)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, encoder.config.num_ws, 24)

    torch.save(network.state_dict(), tmp_path / "small.pth")
    with pytest.raises(ValueError, match="model_ir_se50"):
        identity.load_identity(tmp_path / "small.pth")


def test_the_published_identity_network_is_loaded(tmp_path):
    published = IdentityNetwork()
    torch.save(published.state_dict(), tmp_path / "model_ir_se50.pth")
    loaded = identity.load_identity(tmp_path / "model_ir_se50.pth")
    assert torch.equal(loaded.output_layer[3].weight, published.output_layer[3].weight)


def test_latent_losses_by_hand():
    assert latent_discriminator.encoder_loss(torch.zeros(3)).item() == pytest.approx(math.log(2))
    loss = latent_discriminator.discriminator_loss(torch.tensor([2.0]), torch.tensor([-1.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)))
    linear = nn.Linear(2, 1)
    linear.weight.data = torch.tensor([[3.0, 4.0]])
    penalty = latent_discriminator.r1_penalty(lambda rows: linear(rows)[:, 0], torch.randn(5, 2))
    assert penalty.item() == pytest.approx(10 / 2 * 25 * 16)


def test_the_latent_pool_gives_back_earlier_rows():
    network, draws = LatentDiscriminator(4), torch.Generator().manual_seed(0)
    first = torch.randn(50, 4)
    assert torch.equal(network.mix(first, draws), first)
    second = torch.randn(40, 4)
    mixed = network.mix(second, draws)
    earlier = sum(bool((row == first).all(1).any()) for row in mixed)
    kept = sum(bool((row == new).all()) for row, new in zip(mixed, second))
    assert 8 < earlier and 8 < kept and network(mixed).shape == (40,)


def test_ranger_is_radam_between_lookaheads_on_centred_gradients():
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4), torch.randn(12, 3, 4)

    def run(kind, centred, **options):
        p = nn.Parameter(start.clone())
        optimizer, path = kind([p], lr=0.1, betas=(0.95, 0.999), eps=1e-5, **options), []
        for gradient in gradients:
            p.grad = (gradient - gradient.mean(1, keepdim=True)) if centred else gradient.clone()
            optimizer.step()
            path.append(p.detach().clone())
        return path

    ours, plain = run(Ranger, False), run(torch.optim.RAdam, True)
    for i in range(5):
        torch.testing.assert_close(ours[i], plain[i])
    torch.testing.assert_close(ours[5], start.lerp(plain[5], 0.5))  # back half the way, every sixth step
    assert not torch.allclose(ours[11], plain[11])


def test_ranger_resumes():
    torch.manual_seed(0)
    gradients = torch.randn(9, 2, 3)

    def steps(p, optimizer, part):
        for gradient in part:
            p.grad = gradient.clone()
            optimizer.step()

    p = nn.Parameter(torch.ones(2, 3))
    optimizer = Ranger([p], 0.1)
    steps(p, optimizer, gradients[:4])
    q = nn.Parameter(p.detach().clone())
    other = Ranger([q], 0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(p, optimizer, gradients[4:])
    steps(q, other, gradients[4:])
    assert torch.equal(p, q)
