FROM scratch
RUN cat <<<EOF
RUN <<<EOF cat
RUN echo "<<EOF" '<<EOF' a<<EOF
RUN echo $((1 << 2))
ENV A=<<EOF
RUN --mount=type=cache,target=/root/.m2 mvn
