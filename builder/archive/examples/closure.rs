//! Resolves packages as an image build does, fetches them and says why each is there:
//! `cargo run -p dyad-archive --example closure -- bookworm postgresql-15 lvm2`

use std::process::ExitCode;

use dyad_archive::{Cache, Fetch, Overrides, Refresh, Silent, Sources, clock};
use dyad_debian::{Request, Wanted};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let suite = args.next().ok_or("usage: closure SUITE PACKAGE...")?;
    let packages = args.map(|arg| arg.parse()).collect::<Result<Vec<Wanted>, _>>()?;
    let overrides = Overrides { suite, arch: "amd64".to_owned(), ..Overrides::default() };
    let sources = Sources::discover(&overrides)?;
    for archive in &sources.archives {
        println!("{} {} ({})", archive.base, archive.suite, archive.place);
    }
    let cache = Cache::open_default()?;
    let universe = sources.refresh(&cache, Refresh { offline: false, now: clock::unix_now() }, &Silent)?;
    println!("{} packages known", universe.len());
    let resolution = dyad_debian::resolve(&universe, &Request { packages, ..Request::default() })?;
    let locked: Vec<_> = resolution.packages.iter().map(|package| package.to_locked()).collect();
    let paths = sources.fetch(&cache, &locked, Fetch::default(), &Silent)?;
    for (package, path) in locked.iter().zip(&paths) {
        println!("{} {} {}", package.name, package.version, path.display());
        for line in resolution.why(&package.name) {
            println!("    {line}");
        }
    }
    println!("{} packages, {} bytes", locked.len(), locked.iter().map(|package| package.size).sum::<u64>());
    Ok(())
}
