"""Upload an exported folder to the Hugging Face Hub, with one-line errors."""

import re
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import OfflineModeIsEnabled

from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.hub.export_folder import MARKER

# Names of all files that an export can write, of either kind and for any base model.
_EXPORTED: tuple[str, ...] = ("adapter_model.safetensors", "adapter_config.json", "adapter/adapter_*", "config.json")
_EXPORTED += ("generation_config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_EXPORTED += ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_EXPORTED += ("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_push(repo_id: str) -> str:
    """The token to push with, from HF_TOKEN or `hf auth login`.

    Raises:
        UsageError: not OWNER/NAME, the hub client is offline, or there is no token. No request is made.
    """
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith((".git", ".")):
        raise UsageError(f"--push: {repo_id!r} is not a repository name; give OWNER/NAME, such as me/polite-agent")
    if constants.is_offline_mode():
        raise UsageError("--push: HF_HUB_OFFLINE is set, so nothing is sent; unset it, or export without --push")
    token = get_token()
    if not token:
        raise UsageError("--push: no token for the hub: set HF_TOKEN, or log in once with `hf auth login`")
    return token


def push(folder: Path, repo_id: str, token: str, *, public: bool, message: str) -> str:
    """Create the repository unless it exists, and upload the folder in one commit. Returns the repository's address.

    Files of an earlier export that this one lacks are removed: next to a merged model's config.json, an
    adapter_config.json would make transformers add the adapter a second time. Other files stay.

    A new repository is private unless `public`. An existing one keeps its visibility; if it is public, `public` is
    required.

    Raises:
        UsageError: the hub refused (token, permissions, name, content), or the repository is public.
        RlhfMarlError: the hub cannot be reached or fails.
    """
    api = HfApi(token=token, library_name="rlhf-marl")
    try:
        url = api.create_repo(repo_id, private=not public, exist_ok=True)
        if not public and api.model_info(repo_id).private is False:
            raise UsageError(f"--push: {repo_id} exists and everyone can read it; add --public to publish there")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=[MARKER],
            delete_patterns=list(_EXPORTED),
            commit_message=message,
        )
    except RlhfMarlError:
        raise
    except Exception as error:  # huggingface_hub, its HTTP client and hf_xet raise many unrelated types
        raise _problem(error, repo_id, token) from None
    return str(url)


def _problem(error: BaseException, repo_id: str, token: str) -> RlhfMarlError:
    owner = repo_id.partition("/")[0]
    status = None
    cause: BaseException | None = error
    while status is None and cause is not None:  # an upload error may wrap the Hub's response
        status = getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__
    match status:
        case 401:
            return UsageError("--push: the hub does not accept the token (401): set HF_TOKEN, or `hf auth login` again")
        case 403:
            return UsageError(f"--push: the token may not write to {repo_id} (403): it needs write access to {owner}")
        case 404:
            return UsageError(f"--push: the hub has no {repo_id} (404): does the user or organisation {owner} exist?")
        case 429:
            return RlhfMarlError("--push: too many requests (429): the hub asks you to wait; try again later")
    if isinstance(error, OfflineModeIsEnabled):
        return UsageError("--push: HF_HUB_OFFLINE is set, so nothing is sent")
    reason = " ".join(str(error).split()).replace(token, "***")[:200] or type(error).__name__
    if status is not None and status < 500:
        return UsageError(f"--push: the hub refused {repo_id} ({status}): {reason}")
    if isinstance(error, ValueError):  # huggingface_hub's own checks of the folder and its model card
        return UsageError(f"--push: {repo_id}: {reason}")
    failed = f"failed ({status})" if status else "cannot be reached"
    return RlhfMarlError(f"--push: the hub at {constants.ENDPOINT} {failed}: {reason}")
