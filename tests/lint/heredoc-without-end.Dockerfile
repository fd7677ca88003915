FROM scratch
RUN <<EOF
EOF2
