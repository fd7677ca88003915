FROM scratch
ENV A='$HOME/.m2' B="/root/.m2" C=/root\ /x
RUN --mount=type=cache,target=$B mvn
RUN --mount=type=cache,target=$A mvn
RUN --mount=type=cache,target="$C" mvn
