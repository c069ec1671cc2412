//! Every input in `corpus/` through its target: seeds, and what once broke a parser.

use std::fs;
use std::path::Path;

#[test]
fn the_corpus_breaks_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, run) in dyad_fuzz::TARGETS {
        let mut inputs: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap_or_else(|e| panic!("corpus/{name}: {e}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "corpus/{name} has no input");
        for input in inputs {
            println!("{}", input.display());
            let data = fs::read(&input).unwrap();
            run(&data);
            // A cut input is the commonest damage.
            for cut in [data.len() / 3, data.len() / 2, data.len().saturating_sub(1)] {
                run(&data[..cut]);
            }
        }
    }
    let names: Vec<&str> = dyad_fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
    for entry in fs::read_dir(&corpus).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name.as_str()), "corpus/{name} belongs to no target");
    }
}
