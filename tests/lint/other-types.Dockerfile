FROM scratch
RUN --mount=target=/root/.m2 mvn
RUN --mount=type=bind,target=/root/.m2 mvn
RUN --mount=type=tmpfs,target=/root/.m2 mvn
RUN --mount=type=secret,id=token,target=/root/.m2/settings.xml mvn
RUN --network=none --security=insecure mvn
COPY --from=a --chown=1 /root/.m2 /root/.m2
