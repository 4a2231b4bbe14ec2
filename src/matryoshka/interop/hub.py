"""The Hugging Face hub: the only file that calls its client.

    parse(source)      user/repo[/sub/folder][@revision]
    fetch(place)       the files of one folder there, in the local cache; those below it are left where they are
    names(repository)  of all files there
    upload(folder)     a folder's files in one commit

What is fetched is known by its commit, whatever branch or tag was asked for. Without a network what lies in the local
cache is taken. Nothing that a repository says becomes a path but by `refuse_unsafe`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matryoshka.errors import MatryoshkaError, first_line

BELOW = {"hyperparams.json": "checkpoints"}
"""Folders below a coder's own that hold its weights, by the file beside them that tells of it (Llama Scope)."""
BESIDE = ("cfg.json", "config.json", "config.yaml")
"""What describes a file of weights at the root of a repository, where everything else may lie too."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
UNSAFE = re.compile(r"[*?\[\]\\\x00-\x1f]")


class HubPlace(NamedTuple):
    """A folder of a repository, and maybe one file of it; `folder` "" is the repository itself."""

    repository: str
    folder: str = ""
    revision: str | None = None
    file: str | None = None
    """Relative to the folder."""

    @property
    def own_folder(self) -> str:
        """The folder that its files lie in."""
        below = self.file.rpartition("/")[0] if self.file else ""
        return "/".join(part for part in (self.folder, below) if part)

    def __str__(self) -> str:
        path = "/".join(part for part in (self.repository, self.folder, self.file) if part)
        return path if self.revision is None else f"{path}@{self.revision}"


class Fetched(NamedTuple):
    """What was fetched."""

    path: Path
    """The folder, or the file in it."""
    commit: str


def refuse_unsafe(path: str, where: object) -> str:
    """The path, if it leads to a folder below where it starts and is no pattern; otherwise raise MatryoshkaError."""
    if UNSAFE.search(path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise MatryoshkaError(f"{where}: {path!r} is no path within a repository: expected names with / between them")
    return path


def parse(source: str, file: str | None = None) -> HubPlace:
    """`user/repo[/sub/folder][@revision]`, and a file relative to that. Raises MatryoshkaError for anything else."""
    path, at, revision = source.partition("@")
    user, *rest = path.split("/")
    if not rest or (at and not revision):
        raise MatryoshkaError(f"{source!r}: expected user/repo, user/repo/folder or user/repo/folder@revision")
    repository, folder = f"{user}/{rest[0]}", "/".join(rest[1:])
    refuse_no_repository(repository)
    for part in (folder, file):
        if part:
            refuse_unsafe(part, source)
    return HubPlace(repository, folder, revision or None, file)


def refuse_no_repository(repository: str) -> None:
    """Raise MatryoshkaError unless it is written as the hub's ids are: user/repo."""
    if not REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository or repository.endswith(".git"):
        raise MatryoshkaError(
            f"{repository!r} is no id of a repository on the hub: expected user/repo, of letters, digits, -, _ and ."
        )


def fetch(place: HubPlace) -> Fetched:
    """The files that lie in the folder itself, or in that of its file. Raises MatryoshkaError where they cannot be had,
    with the folders that there are if that can be known."""
    folder = place.own_folder
    if place.file and not folder:
        snapshot = _snapshot(place, [place.file, *BESIDE])
    else:
        above, _, last = folder.rpartition("/")
        folders = [above, folder] if place.file and last in BELOW.values() else [folder]
        snapshot = fetch_folders(place.repository, folders, place.revision).path
    path = snapshot / place.folder / (place.file or "")
    if not path.is_file() and not (path.is_dir() and any(path.iterdir())):
        missing = path.relative_to(snapshot).as_posix()
        raise MatryoshkaError(f"{place.repository}: holds no {missing!r}{_there(place, missing)}")
    return Fetched(path, snapshot.name)


def fetch_folders(repository: str, folders: Sequence[str], revision: str | None = None) -> Fetched:
    """The files that lie in these folders of a repository ("": in itself), of one commit, below one path; what lies
    below them is left where it is, but for what holds a coder's weights."""
    place, snapshot = HubPlace(repository, revision=revision), Path()
    for folder in folders:
        inside = f"{folder}/*".removeprefix("/")
        snapshot = _snapshot(place, [inside], [f"{inside}/*"])  # * matches / as well
        place = place._replace(revision=snapshot.name)
        for told, below in BELOW.items():
            if (snapshot / folder / told).is_file():
                _snapshot(place, [f"{folder}/{below}/*".removeprefix("/")])
    return Fetched(snapshot, snapshot.name)


def _snapshot(place: HubPlace, allowed: list[str], ignored: list[str] | None = None) -> Path:
    """The folder in the cache, called as the commit is, with the files of these patterns."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                place.repository, revision=place.revision, allow_patterns=allowed, ignore_patterns=ignored
            )
        )
    except Exception as error:  # the client's own errors have no common base, nor has its network's
        raise _unavailable(place.repository, place.revision, error) from None


def names(repository: str, revision: str | None = None) -> list[str]:
    """All files of a repository. Raises MatryoshkaError where that cannot be known."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
    except Exception as error:
        raise _unavailable(repository, revision, error) from None


def _there(place: HubPlace, missing: str) -> str:
    """Folders of the repository that may have been meant, for the end of a message; nothing where nobody can know."""
    from difflib import get_close_matches

    try:
        files = names(place.repository, place.revision)
    except MatryoshkaError:
        return ""
    weights = [Path(name) for name in files if name.endswith((".safetensors", ".npz", ".pt"))]
    folders = sorted({path.parent.as_posix() for path in weights} | {path.as_posix() for path in weights})
    near = get_close_matches(missing, folders, n=3, cutoff=0.3) or folders[:3]
    return f"; there are: {', '.join(near)}" if near else ""


class Uploaded(NamedTuple):
    """Where what was uploaded lies."""

    address: str
    commit: str


def create(repository: str, private: bool) -> list[str]:
    """Make the repository, if it is not there yet; the files in it. Raises MatryoshkaError where that cannot be."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return api.list_repo_files(repository)
    except Exception as error:
        raise _unavailable(repository, None, error) from None


def upload(folder: Path, repository: str, message: str, replaced: Sequence[str] = ()) -> Uploaded:
    """All files of `folder` in one commit, in which those there that match one of `replaced` make way. Raises
    MatryoshkaError where that cannot be."""
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=list(replaced) or None
        )
    except Exception as error:
        raise _unavailable(repository, None, error) from None
    return Uploaded(f"https://huggingface.co/{repository}", str(commit.oid))


def _unavailable(repository: str, revision: str | None, error: Exception) -> MatryoshkaError:
    """One line for whatever the client says."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            why = f"is gated: accept its terms at https://huggingface.co/{repository}, and log in with: hf auth login"
        case errors.RepositoryNotFoundError():
            why = "there is no such repository on the hub, or it is private: log in with: hf auth login"
        case errors.RevisionNotFoundError():
            why = f"has no revision {revision!r}: expected a branch, tag or commit"
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() | ConnectionError():
            why = "the Hugging Face hub cannot be reached, and this is not in the local cache (folders need no network)"
        case errors.LocalTokenNotFoundError():
            why = "needs you to log in with: hf auth login"
        case _:
            why = f"the Hugging Face hub says: {first_line(error)}"
    return MatryoshkaError(f"{repository}: {why}")
