FROM scratch
RUN --mount=type=cache,target=/root/.cache/sccache RUSTC_WRAPPER=sccache cargo build
