FROM scratch
WORKDIR /root
RUN --mount=type=cache,target=.m2 mvn
WORKDIR .cargo
RUN --mount=type=cache,target=registry true
RUN --mount=type=cache,target=./git/ true
RUN --mount=type=cache,target=target cargo build
