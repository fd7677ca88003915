FROM scratch
RUN --mount=type=cache,target=/root/.nuget/packages dotnet restore
