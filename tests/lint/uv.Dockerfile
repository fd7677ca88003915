FROM scratch
RUN --mount=type=cache,target=/root/.cache/uv uv sync --locked
