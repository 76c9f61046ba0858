"""Models behind OpenAI-compatible servers: the engine that draws there, and what it shares with judges that are asked there."""
