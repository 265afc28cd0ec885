import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.artifacts.store import Draft, make
from stages.artifacts.weights import Registration
from stages.artifacts.weights_file import load_state, load_weights, save_state, save_weights
from stages.errors import LrlsError


def weights_and_networks(folder: Path) -> tuple[Path, dict[str, Any]]:
    torch.manual_seed(0)
    networks: dict[str, Any] = {
        "R": torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2)),
        "S": torch.nn.Linear(3, 2),
    }
    save_weights(networks, folder / "weights.safetensors", {"method": "brbs", "step": 5})
    return folder / "weights.safetensors", networks


def test_weights_come_back_with_buffers_and_metadata(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    _, others = weights_and_networks(tmp_path)
    for tensor in (tensor for network in others.values() for tensor in network.state_dict().values()):
        tensor.fill_(9)

    assert load_weights(others, path) == {"method": "brbs", "step": 5}

    for name, network in networks.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(others[name].state_dict()[key], tensor), key


def test_one_network_can_be_loaded_alone(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    alone = torch.nn.Linear(3, 2)
    load_weights({"S": alone}, path)
    assert torch.equal(alone.weight, networks["S"].weight)


def test_a_part_of_a_network_can_be_loaded_alone_and_must_fit(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    part = torch.nn.Conv3d(1, 2, 3)
    load_weights({"R/0": part}, path)
    assert torch.equal(part.weight, networks["R"][0].weight)
    with pytest.raises(LrlsError, match=r"tensor R/0\.bias: found \(2,\), the network expects \(3,\); use"):
        load_weights({"R/0": torch.nn.Conv3d(1, 3, 3)}, path)


def registration_of(folder: Path) -> tuple[Registration, dict[str, Any]]:
    """An artifact with the weights of R and S, and these networks."""
    found: dict[str, Any] = {}

    def write(draft: Draft) -> None:
        found.update(weights_and_networks(draft.folder)[1])

    told: dict[str, Any] = {"made_by": "train-reg", "settings": {}, "seed": 0, "inputs": {}}
    return make(Registration, folder, write, **told), found


def test_an_artifact_fills_networks_and_sub_networks_and_leaves_others_alone(tmp_path):
    registration, networks = registration_of(tmp_path)
    asked = {"S": torch.nn.Linear(3, 2), "R/0": torch.nn.Conv3d(1, 2, 3)}

    registration.load(asked)

    assert torch.equal(asked["S"].weight, networks["S"].weight)
    assert torch.equal(asked["R/0"].weight, networks["R"][0].weight)


def test_a_network_that_an_artifact_does_not_hold_keeps_no_random_weights_in_silence(tmp_path):
    registration, _ = registration_of(tmp_path)
    held = torch.nn.Linear(3, 2)
    before = held.weight.detach().clone()
    with pytest.raises(
        LrlsError, match=r"v0001/weights\.safetensors: tensor T/bias: found nothing, the network expects"
    ):
        registration.load({"S": held, "T": torch.nn.Linear(3, 2)})
    assert torch.equal(held.weight, before)


def test_an_artifact_whose_network_does_not_fit_fills_none(tmp_path):
    registration, _ = registration_of(tmp_path)
    fits = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    before = fits[0].weight.detach().clone()
    with pytest.raises(LrlsError, match=r"tensor S/weight: found \(2, 3\), the network expects \(2, 4\)"):
        registration.load({"R": fits, "S": torch.nn.Linear(4, 2)})
    assert torch.equal(fits[0].weight, before)


def test_weights_are_stored_in_float32_and_same_weights_give_the_same_bytes(tmp_path):
    from safetensors.torch import load_file

    path, networks = weights_and_networks(tmp_path)
    first = path.read_bytes()
    save_weights(dict(reversed(networks.items())), path, {"step": 5, "method": "brbs"})
    assert path.read_bytes() == first
    save_weights({"S": networks["S"].double()}, path, {})
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


def test_weights_that_the_system_cannot_read_are_one_line(tmp_path, monkeypatch):
    path, networks = weights_and_networks(tmp_path)

    def refused(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(LrlsError, match=r"weights\.safetensors cannot be read \(Input/output error\); run the same"):
        load_weights(networks, path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(tmp_path, keep):
    path, networks = weights_and_networks(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LrlsError, match=r"weights\.safetensors is truncated or damaged; make it again"):
        load_weights(networks, path)


def test_changed_byte_in_the_weights_is_refused_and_the_networks_stay(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    before = networks["S"].weight.detach().clone()
    with pytest.raises(LrlsError, match=r"weights\.safetensors changed"):
        load_weights(networks, path)
    assert torch.equal(networks["S"].weight, before)


def test_every_changed_byte_of_the_header_is_refused(tmp_path):
    save_weights({"S": torch.nn.Linear(1, 1)}, tmp_path / "w.safetensors", {"step": 5})
    whole = (tmp_path / "w.safetensors").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for position in range(len(whole[:length].rstrip())):
        data = bytearray(whole)
        data[position] ^= 2
        (tmp_path / "w.safetensors").write_bytes(bytes(data))
        with pytest.raises(LrlsError):
            load_weights({"S": torch.nn.Linear(1, 1)}, tmp_path / "w.safetensors")


def test_mismatched_weights_name_the_tensor_and_both_shapes(tmp_path):
    path, networks = weights_and_networks(tmp_path)
    with pytest.raises(LrlsError, match=r"tensor S/weight: found \(2, 3\), the network expects \(2, 4\)"):
        load_weights({**networks, "S": torch.nn.Linear(4, 2)}, path)
    with pytest.raises(LrlsError, match=r"tensor S/bias: found \(2,\), the network expects nothing"):
        load_weights({"S": torch.nn.Linear(3, 2, bias=False)}, path)
    with pytest.raises(LrlsError, match=r"tensor T/bias: found nothing, the network expects \(2,\)"):
        load_weights({"T": torch.nn.Linear(3, 2)}, path)
    with pytest.raises(LrlsError, match="is missing"):
        load_weights(networks, tmp_path / "absent.safetensors")


def test_training_state_comes_back(tmp_path):
    state: dict[str, Any] = {"step": 3, "rng": torch.get_rng_state(), "queue": [torch.ones(2)], "name": "adam"}
    save_state(state, tmp_path / "state.pt")
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["rng"], state["rng"])


def test_training_state_with_objects_is_not_read(tmp_path):
    save_state({"path": Path("a")}, tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt") is None


@pytest.mark.parametrize("place", [0, 50, -70, -1])
def test_training_state_that_is_changed_cut_or_missing_is_not_read(tmp_path, place):
    save_state({"step": 3}, tmp_path / "state.pt")
    whole = (tmp_path / "state.pt").read_bytes()
    for damaged in (bytearray(whole), whole[:place], whole + b"x", b""):
        if isinstance(damaged, bytearray):
            damaged[place] ^= 1
        (tmp_path / "state.pt").write_bytes(damaged)
        assert load_state(tmp_path / "state.pt") is None
    assert load_state(tmp_path / "other.pt") is None
