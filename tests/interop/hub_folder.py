"""A hub without a network: repositories are folders, one below the other for each commit, and the client's calls answer
from them as the real ones do."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import save_file

from matryoshka.coder.coder import SparseCoder


class HubFolder:
    """`root`/user/repo/COMMIT/… is what the repository user/repo held at that commit; `main` is the last one."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.fetched, self.reachable = root / "hub", root / "cache", [], True
        self.created: dict[str, bool] = {}

    def serve(self, monkeypatch: pytest.MonkeyPatch) -> "HubFolder":
        """Let the client's calls answer from here."""
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", self.api)
        return self

    def add(self, repository: str, folder: Path) -> str:
        """A commit of a repository that holds what lies in `folder`; its hash."""
        commits = self.root / repository
        commit = f"{len(list(commits.glob('*'))):040x}"
        shutil.copytree(folder, commits / commit)
        return commit

    def commit(self, repository: str, revision: str | None = None) -> Path:
        """The folder of a commit; raises as the client does."""
        if not self.reachable:
            raise LocalEntryNotFoundError("cannot find the requested files in the disk cache")
        commits = sorted((self.root / repository).glob("*"))
        if not commits:
            raise RepositoryNotFoundError("404 Client Error", response=_response())
        if revision in (None, "main"):
            return commits[-1]
        if not (found := [commit for commit in commits if commit.name == revision]):
            raise RevisionNotFoundError("404 Client Error", response=_response())
        return found[0]

    def snapshot_download(
        self, repo_id: str, *, revision: str | None = None, allow_patterns: Any = None, ignore_patterns: Any = None
    ) -> str:
        """Copies what the patterns let through, as the hub's client does: * matches / as well."""
        commit = self.commit(repo_id, revision)
        snapshot = self.cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit.name
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in sorted(file for file in commit.rglob("*") if file.is_file()):
            name = file.relative_to(commit).as_posix()
            allowed = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if allowed and not any(fnmatch(name, pattern) for pattern in ignore_patterns or ()):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, snapshot / name)
                self.fetched.append(name)
        return str(snapshot)

    def api(self) -> SimpleNamespace:
        """The methods of HfApi that are called."""
        return SimpleNamespace(
            list_repo_files=self.list_repo_files, create_repo=self.create_repo, upload_folder=self.upload_folder
        )

    def list_repo_files(self, repo_id: str, *, revision: str | None = None) -> list[str]:
        if repo_id in self.created and not (self.root / repo_id).exists():
            return []
        commit = self.commit(repo_id, revision)
        return [file.relative_to(commit).as_posix() for file in sorted(commit.rglob("*")) if file.is_file()]

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> None:
        assert exist_ok
        if not self.reachable:
            raise LocalEntryNotFoundError("no network")
        self.created.setdefault(repo_id, bool(private))

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str] | None = None
    ) -> SimpleNamespace:
        """A commit of what lies there already, without what makes way, and of the folder's files."""
        new = self.root / repo_id / f"{len(list((self.root / repo_id).glob('*'))):040x}"
        if (self.root / repo_id).exists():
            before = self.commit(repo_id)
            for name in self.list_repo_files(repo_id):
                if not any(fnmatch(name, pattern) for pattern in delete_patterns or ()):
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(before / name, new / name)
        shutil.copytree(folder_path, new, dirs_exist_ok=True)
        return SimpleNamespace(oid=new.name)


def _response() -> Any:
    from huggingface_hub.errors import HfHubHTTPError  # whichever client library it is built on

    library = __import__(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
    return library.Response(404, request=library.Request("GET", "https://huggingface.co/api/models/x/y"))


def write_saelens(folder: Path, coder: SparseCoder, hook: str = "blocks.1.mlp.hook_in", **fields: Any) -> Path:
    """The coder as SAELens saves it, by hand: an SAE, or with `out=` a transcoder; `fields` are of its metadata."""
    weights = coder.weights
    tensors = {name: tensor for name, tensor in weights._asdict().items() if tensor is not None}
    if weights.threshold is not None:
        tensors["threshold"] = weights.threshold.expand(weights.d_sae)
    out = fields.pop("out", None)
    metadata = {
        "sae_lens_version": "6.54.12",
        "model_name": "bundled",
        "hook_name": hook,
        "hook_name_out": out,
        "prepend_bos": True,
        "context_size": 64,
        "training_architecture_details": {"k": coder.config.k, "matryoshka_widths": list(coder.widths)},
        **fields,
    }
    config = {
        "architecture": "jumprelu_transcoder" if out else "jumprelu",
        "d_in": coder.config.d_in,
        "d_sae": coder.config.d_sae,
        "d_out": coder.config.d_out,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors"
    )
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def same(one: SparseCoder, other: SparseCoder, d: int) -> bool:
    """Whether two coders are one function, at every prefix of the second."""
    x = torch.randn(32, d, generator=torch.Generator().manual_seed(1)) * 3
    y, y_other = (coder.decode(coder.encode(x), widths=other.widths) for coder in (one, other))
    return bool(torch.allclose(y, y_other, atol=1e-4))
