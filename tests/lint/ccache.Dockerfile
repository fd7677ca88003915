FROM scratch
RUN --mount=type=cache,target=/root/.cache/ccache make
