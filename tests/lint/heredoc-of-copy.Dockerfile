FROM scratch
COPY <<EOF <<"END" /etc/
RUN --mount=type=cache,target=/root/.m2 mvn
EOF
RUN --mount=type=cache,target=/root/.m2 mvn
END
ADD --chown=1:1 <<EOF /b
$x
EOF
RUN --mount=type=cache,target=/root/.m2 mvn
