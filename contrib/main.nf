// Segments a cohort in shards, then joins the results.
//   nextflow run contrib/main.nf --slides=cohort.csv --output_dir=results --model=net.tar --shards=8 --toolkit=/path/to/it
// Every node must see all paths. Set the resources of a process (GPU, memory, queue) in your nextflow.config.
nextflow.enable.dsl = 2

params.slides = null
params.output_dir = 'results'
params.model = null
params.shards = 8
params.toolkit = projectDir.parent
params.gpu = '0'

process SEGMENT {
    label 'gpu'
    errorStrategy 'ignore' // the other shards go on; `merge` names the slides that failed

    input:
    val index

    output:
    val index

    script:
    """
    python '${params.toolkit}/run_infer.py' --gpu='${params.gpu}' --model_path='${file(params.model)}' wsi \\
        --slides='${file(params.slides)}' --output_dir='${file(params.output_dir)}' --shard=${index}/${params.shards}
    """
}

process JOIN {
    input:
    val shares

    script:
    """
    python '${params.toolkit}/run_infer.py' merge --output_dir='${file(params.output_dir)}'
    """
}

workflow {
    SEGMENT(Channel.of(0..<params.shards)) | collect | JOIN
}
