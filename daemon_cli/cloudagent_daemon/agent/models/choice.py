"""The model of a turn, by the API that it speaks."""

from cloudagent_daemon.agent.config import Config, ModelKind
from cloudagent_daemon.agent.models.base import Model


def open_model(kind: ModelKind, name: str, settings: Config) -> Model:
    """A client of the model's service; to be closed."""
    # Imported when chosen: the HTTP client takes 0.1 s that the scripted model has no use for.
    match kind:
        case "scripted":
            from cloudagent_daemon.agent.models.scripted import ScriptedModel

            return ScriptedModel()
        case "anthropic":
            from cloudagent_daemon.agent.models.anthropic import AnthropicModel

            return AnthropicModel(settings, name)
        case "openai":
            from cloudagent_daemon.agent.models.openai import OpenAIModel

            return OpenAIModel(settings, name)
