"""`jouleserve jobs`: submit, list, show and cancel, over HTTP as any client does."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from models.store import write_atomic
from server.addresses import joined
from server.config import load
from server.start_error import StartError

app = typer.Typer(no_args_is_help=True, help="Classify texts by a deadline, in the cleanest hours before it.")
console = Console()

TIMEOUT_S = 60.0
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: jouleserve.yaml).")]
UrlOption = Annotated[str | None, typer.Option(help="Where the server answers (default: server.host and port).")]
KeyOption = Annotated[Path | None, typer.Option("--key-file", help="File that holds your API key.")]


class _Client:
    """The server, asked with a key where there is one. Every failure is a StartError with what to do."""

    def __init__(self, url: str | None, key_file: Path | None, config: Path | None) -> None:
        if url is None:
            server = load(config).settings.server
            url = f"http://{joined(server.host, server.port)}"
        import httpx  # takes a fifth of a second to load, which every other command would wait for

        headers = {}
        if key_file is not None:
            headers["Authorization"] = f"Bearer {_key_of(key_file)}"
        self._url = url.rstrip("/")
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_S)

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """The reply's JSON. Raises StartError."""
        import httpx

        try:
            reply = self._client.request(method, self._url + path, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise StartError(f"{self._url} does not answer ({error}); start it with `jouleserve up`") from None
        try:
            tree = reply.json()
        except ValueError:
            raise StartError(f"{self._url} is no JouleServe: it answers {reply.status_code} and no JSON") from None
        if reply.status_code >= 400:
            raise StartError(f"refused ({reply.status_code}): {tree.get('error', tree)}")
        return tree


def _key_of(path: Path) -> str:
    """The key that a file holds. Raises StartError."""
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"--key-file: {path} cannot be read ({error}); give a file with your key") from None
    if not key.isascii() or len(key.split()) != 1:  # no header can carry it, and the error about that would show it
        raise StartError(f"--key-file: {path} holds no key, or more than one word; give a file with your key alone")
    return key


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="One text a line, or .ndjson, or .csv with `text` (and `text_b`).")],
    deadline: Annotated[str | None, typer.Option(help="ISO 8601 time; without a zone UTC.")] = None,
    within: Annotated[str | None, typer.Option(help="From now on, as 90m, 12h or 3d; instead of --deadline.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="Sent again with it, it is the same job.")] = None,
    url: UrlOption = None,
    key_file: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Hand a file of texts in."""
    query = {"truncate": "true"} if truncate else {}
    if deadline is not None:
        query["deadline"] = deadline
    if within is not None:
        query["within_s"] = str(seconds_of(within))
    body, kind = read_texts(file)
    headers = {"content-type": kind}
    if idempotency_key is not None:
        if not idempotency_key.isascii() or not idempotency_key.isprintable() or not idempotency_key.strip():
            raise StartError(f"--idempotency-key: {idempotency_key!r} fits no header; give printable ASCII")
        headers["Idempotency-Key"] = idempotency_key.strip()
    job = _Client(url, key_file, config).ask("POST", "/jobs", params=query, content=body, headers=headers)
    console.print(f"{job['id']}: {job['texts']} texts by {job['deadline']}", highlight=False)
    console.print(f"next: jouleserve jobs show {job['id']}", highlight=False)


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="waiting, running, done or cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    url: UrlOption = None,
    key_file: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Your jobs, newest first."""
    query = {"limit": limit, **({} if state is None else {"state": state})}
    found = _Client(url, key_file, config).ask("GET", "/jobs", params=query)
    table = Table("job", "state", "texts", "deadline", "planned or finished", "gCO2e", "at once")
    for job in found["jobs"]:
        when = job["finished"] or job["planned"] or ""
        texts = f"{job['texts_done']}/{job['texts']}"
        table.add_row(
            job["id"], job["state"] + (" (late)" if job["late"] else ""), texts, job["deadline"], when,
            _grams(job["grams"]), _grams(job["grams_at_once"]),
        )  # fmt: skip
    console.print(table)
    if found["next"] is not None:
        console.print("there are more: --limit shows up to 1,000 of them")


@app.command()
def show(
    job_id: str,
    results: Annotated[Path | None, typer.Option(help="Write the results to this .ndjson file.")] = None,
    url: UrlOption = None,
    key_file: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """One job: its state, when it is planned, what it saved; --results fetches what came of it."""
    client = _Client(url, key_file, config)
    job = client.ask("GET", _path(job_id))
    console.print_json(data=job)
    if results is not None:
        _fetch(client, job_id, results)
        console.print(f"results: {results}", highlight=False)


def _fetch(client: _Client, job_id: str, path: Path) -> None:
    """Write the results of a job, all of them or none. Raises StartError."""
    lines: list[str] = []
    start: int | None = 0
    while start is not None:
        page = client.ask("GET", f"{_path(job_id)}/results", params={"start": start})
        lines += [json.dumps(row) + "\n" for row in page["results"]]
        start = page["next"]
    try:
        write_atomic(path, "".join(lines).encode())
    except OSError as error:
        raise StartError(f"--results: {path} cannot be written ({error.strerror}); give another file") from None


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


@app.command()
def cancel(job_id: str, url: UrlOption = None, key_file: KeyOption = None, config: ConfigOption = None) -> None:
    """Compute no more of a job."""
    job = _Client(url, key_file, config).ask("DELETE", _path(job_id))
    console.print(
        f"{job['id']}: {job['state']}, {job['texts_done']} of {job['texts']} texts were done", highlight=False
    )


def seconds_of(text: str) -> float:
    """`90m`, `12h`, `3d` or `45s` in seconds. Raises StartError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise StartError(f"--within: {text!r} is no time span; write 90m, 12h or 3d") from None


def read_texts(path: Path) -> tuple[bytes, str]:
    """The file as a submission's body, and its content type. Raises StartError."""
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as handle:
                rows = [_row(row, path) for row in csv.DictReader(handle)]
            return "".join(json.dumps(row) + "\n" for row in rows).encode(), "application/x-ndjson"
        kind = "application/x-ndjson" if path.suffix in (".ndjson", ".jsonl") else "text/plain"
        return path.read_bytes(), kind
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StartError(f"{path}: cannot be read ({error}); give a UTF-8 file of texts") from None


def _row(row: Mapping[str, str], path: Path) -> list[str]:
    if row.get("text") is None:
        raise StartError(f"{path}: has no column `text`, or a row without one; name the texts' column so")
    return [row["text"], row["text_b"]] if row.get("text_b") else [row["text"]]


def _grams(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
