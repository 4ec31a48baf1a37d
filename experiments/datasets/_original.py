"""Original files of data sets, each recognised by its checksum."""

import dataclasses
import gzip
import hashlib
import pathlib
import zlib


def sha256(content: bytes) -> str:
  """The usual checksum."""
  return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
  """Git's id of a file with this content."""
  return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Original:
  """A file as its authors published it.

  Attributes:
    name: of the file.
    checksum: of its content: SHA-256, or, of 40 digits, git's id.
    url: where it is published, if it can be downloaded.
  """

  name: str
  checksum: str
  url: str | None = None

  def find(self, source: pathlib.Path, folder: str) -> bytes:
    """The content of the file in a directory, or in a folder of it.

    Args:
      source: the directory. What is not compressed may be compressed there, with
        `.gz` at the end of its name.
      folder: in which it may be, too.
    """
    names = (self.name, f"{self.name}.gz")
    paths = [source / sub / name for sub in (".", folder) for name in names]
    for path in paths:
      if path.is_file():
        return self.read(path)
    raise FileNotFoundError(
      f"{source} has no {self.name}, nor has its folder {folder}; it is the file with"
      f" the {self._kind} {self.checksum}."
    )

  def read(self, path: pathlib.Path) -> bytes:
    """The content of a file, which must be this one."""
    content = path.read_bytes()
    if path.suffix == ".gz" and not self.name.endswith(".gz"):
      try:
        content = gzip.decompress(content)
      except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
          f"{path} is truncated or altered ({error}); uncompressed, its {self._kind}"
          f" should be {self.checksum}."
        ) from error
    found = (git_blob if len(self.checksum) == 40 else sha256)(content)
    if found != self.checksum:
      raise ValueError(
        f"{path} is truncated or altered: its {self._kind} should be {self.checksum},"
        f" and is {found}."
      )
    return content

  @property
  def _kind(self) -> str:
    return "git blob id" if len(self.checksum) == 40 else "SHA-256"
