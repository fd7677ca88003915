FROM scratch
RUN --mount=type=cache,target=$CARGO_HOME/registry true
RUN --mount=type=cache,target=${CARGO_HOME} true
ENV CARGO_HOME=/rust GOCACHE=/cache/go
RUN --mount=type=cache,target=/rust/registry true
RUN --mount=type=cache,target=/rust true
RUN --mount=type=cache,target=/cache/go true
RUN --mount=type=cache,target=/cache/gone true
