"""MHA, GQA and MQA to MLA: one step a file, each exact at full size; what is lost is measured on text not seen."""
